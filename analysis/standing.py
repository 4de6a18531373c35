"""Where every attempt and every run stands, in SQL, from what the journals say and what `job_ends` adds to it."""

from __future__ import annotations

import duckdb

_OUTCOME = "status IN ('completed', 'diverged')"

WINNERS = f"""
SELECT * FROM collector.attempts WHERE mode = 'train' AND {_OUTCOME}
QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY "try", job, sweep, number) = 1
"""
"""The attempt that counts, by run: of those with an outcome the first in (try, job, sweep, number) order."""

_ATTEMPTS = """
INSERT INTO attempts BY NAME
WITH told AS (  -- an attempt without an end runs only while its try is not known to be over, or followed by another
    SELECT a.*, e.cause AS end_cause, e.state, e.node, e.given_up,
        coalesce(a.status = 'running' AND (e.job IS NOT NULL OR a."try" < j.last), false)
            OR coalesce(a.status = 'interrupted' AND a.cause = 'stopped' AND e.cause != 'lost', false) AS closed
    FROM collector.attempts AS a
    LEFT JOIN job_ends AS e ON e.sweep = a.sweep AND e.job = a.job AND e."try" = a."try"
    JOIN (SELECT sweep, job, max("try") AS last FROM jobs GROUP BY ALL) AS j ON j.sweep = a.sweep AND j.job = a.job
)
SELECT * EXCLUDE (end_cause, state, node, given_up, closed) REPLACE (
    CASE WHEN NOT closed THEN status
        WHEN list_contains(given_up, run_id) THEN 'failed'
        WHEN end_cause = 'cancelled' THEN 'cancelled' ELSE 'interrupted' END AS status,
    CASE WHEN closed THEN coalesce(end_cause, 'stopped') ELSE cause END AS cause,
    CASE WHEN closed THEN 'its job ended' || coalesce(' on ' || node, '') || ': '
        || coalesce(nullif(state, ''), end_cause, 'stopped') ELSE message END AS message
)
FROM told
"""

_RUNS = f"""
INSERT INTO runs BY NAME
WITH wanted AS (
    SELECT run_id, any_value(config_id) AS config_id, any_value(seed) AS seed, any_value(repeat) AS repeat,
        max(forgiven) AS forgiven
    FROM sweep_runs GROUP BY run_id
),
counted AS (
    SELECT run_id, count(*) AS attempts,
        count(*) FILTER (WHERE mode = 'train' AND status = 'failed') AS failures,
        count(*) FILTER (WHERE mode = 'train' AND status = 'running') AS running,
        max_by(status, ("try", job, sweep, number))
            FILTER (WHERE mode = 'train' AND status IN ('interrupted', 'cancelled')) AS stopped
    FROM attempts GROUP BY run_id
),
winners AS ({WINNERS}),
stated AS (
    SELECT w.*, coalesce(c.attempts, 0) AS attempts, coalesce(c.failures, 0) AS failures,
        CASE
            WHEN x.run_id IS NOT NULL THEN x.status
            WHEN c.failures > w.forgiven THEN 'failed'
            WHEN c.running > 0 THEN 'running'
            ELSE coalesce(c.stopped, 'queued')
        END AS status
    FROM wanted AS w
    LEFT JOIN counted AS c ON c.run_id = w.run_id
    LEFT JOIN winners AS x ON x.run_id = w.run_id
),
deciding AS (
    SELECT t.* FROM attempts AS t JOIN stated AS s ON s.run_id = t.run_id AND s.status = t.status
    WHERE t.mode = 'train' AND NOT {_OUTCOME.replace("status", "t.status")}
    QUALIFY row_number() OVER (PARTITION BY t.run_id ORDER BY t."try" DESC, t.job DESC, t.sweep DESC, t.number DESC) = 1
    UNION ALL BY NAME
    SELECT * FROM winners
)
SELECT s.run_id, s.config_id, s.seed, s.repeat, s.status, s.attempts, s.failures,
    d.attempt_id, d.sweep, d.cause, d.message, j.node, j.gpu, j."commit", d.started, d.ended, d.seconds, d.steps
FROM stated AS s
LEFT JOIN deciding AS d ON d.run_id = s.run_id
LEFT JOIN jobs AS j ON j.sweep = d.sweep AND j.job = d.job AND j."try" = d."try"
ORDER BY s.run_id
"""


def restate(con: duckdb.DuckDBPyConnection) -> None:
    """Fill `attempts` and `runs` anew: thousands of rows, milliseconds."""
    for table, query in (("attempts", _ATTEMPTS), ("runs", _RUNS)):
        con.execute(f"DELETE FROM {table}")
        con.execute(query)
