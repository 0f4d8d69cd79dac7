"""Several processes as one run: who they are, how they meet, how one that ends, ends all."""
