"""From journals to answers: the collector, the result database, statistics and the report."""
