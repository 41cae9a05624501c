"""The review desk: people decide whether an erasure succeeded, one key a decision.

``store`` keeps the log of decisions, ``policy`` chooses what is shown, ``router`` serves the page. It needs neither Ray nor a GPU.
"""
