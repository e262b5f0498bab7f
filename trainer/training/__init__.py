"""The loop, its step, and the state that it trains."""
