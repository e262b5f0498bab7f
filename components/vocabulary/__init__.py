"""The vocabulary of a run: trained from its captions, or brought by the weights it starts from."""
