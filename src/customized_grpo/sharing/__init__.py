"""What leaves the house: an adapter's model card, and the files that a repository on the Hub gets."""
