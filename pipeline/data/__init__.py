"""From what ``--data`` says to documents of text."""
