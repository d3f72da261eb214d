"""The service: recordings come in over HTTP, what `lfmim predict` says of them goes out."""
