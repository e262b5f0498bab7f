"""The server: REST and gRPC, batches, versions."""
