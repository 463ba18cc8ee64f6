import logging

from customized_grpo.runtime.stopping import ending

# What torchao says when diffusers imports it, on cards that its kernels are not for; and bitsandbytes without a card.
for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Entry point of the installed program and of `python -m customized_grpo`."""
    with ending(lambda: "nothing was done"):  # until a command says more: importing the command line takes a moment
        from customized_grpo.cli import main as run

        run()


if __name__ == "__main__":
    main()
