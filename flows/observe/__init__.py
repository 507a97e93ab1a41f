"""Looking at the world: one file per source, each ``Known`` or ``Unknown``; ``gather`` puts them together. Observers hold readers only."""
