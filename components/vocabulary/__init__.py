"""A SentencePiece vocabulary, trained from the captions of the training split."""
