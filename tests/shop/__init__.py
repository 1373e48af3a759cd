"""The test project's app: orders as business rows, and a record of everything that its consumer
groups did."""
