"""What must hold, one file per invariant of the specification's table, named exactly so. Checked after every event: an effect at a receiver,
a commit, a sweep's end, a minute; and at the end. They read the world's truth and the database by their own SQL, never the product's answers.
"""
