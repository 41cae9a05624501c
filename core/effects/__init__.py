"""What an object changes in its picture: found in a pair of photos with and without it, and lifted together with it."""
