"""Evaluation metrics over whole sets, in NumPy: functions of embeddings, scores and labels."""
