"""Features from raw utterance videos: operators without Ray, and the Ray Data pipeline over
them."""
