"""What client and server speak: TF Serving's messages and tensors."""
