"""What the tests share: fixtures, raw sessions, processes, groups of a single test."""
