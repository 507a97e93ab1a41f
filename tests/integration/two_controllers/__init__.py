"""Two controllers on one world, disturbed in every phase: receivers get no second effect, the loser writes nothing but ``fenced``, and the
other one heals within one expiry. A row of the matrix is a module; one cell of each always runs, the whole matrix in ``make soak``.
"""
