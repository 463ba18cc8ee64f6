"""`customized-grpo studio`: a page on this machine to try a model, watch a run and look through its held-out cases.

    opened.py      the models and runs that the page shows: arguments, checkpoints, the content of a run's folder
    subjects.py    reference pictures: of held-out cases, or uploaded
    generating.py  base and tuned pictures with all intermediate estimates, and their scores
    markup.py      the parts of the page as HTML
    page.py        the page: its components, and what they do
    server.py      serves the page on the loopback interface until a signal

Gradio is imported late: it is an extra.
"""
