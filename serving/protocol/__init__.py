"""The protocol of client and server: TF Serving's messages and tensors."""
