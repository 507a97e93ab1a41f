"""Everything that changes the world: steps of operations and repairs of the sweep, under a lease, journaled, each with its proof."""
