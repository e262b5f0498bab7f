"""Whether a candidate serves: TF Serving's loader, and requests with known answers."""
