"""What tests share: small media, a toy store, models, sweeps. One place, imported as a package."""
