"""The steps of operations. Each says what it does, how to see that it is done already, and how to undo it."""
