"""Facts of the business as frozen values. Imports nothing but the standard library.

Times are integers: milliseconds since 1970 by the database's clock, unless a name says ``_s`` (seconds).
"""
