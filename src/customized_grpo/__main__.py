from customized_grpo.cli import main

main()
