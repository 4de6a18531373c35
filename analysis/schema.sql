-- The result database. Rebuilt from the journals whenever this text changes.
-- Plain DuckDB reads it, views and macros included, from version 1.1 on. Times are UTC.
-- {{training}} and {{evaluation}} stand for one typed column per field of TrainingConfig and Evaluation.

CREATE TABLE sweeps (
    sweep       VARCHAR NOT NULL,
    created     TIMESTAMP,
    spec        VARCHAR,      -- the YAML text, as last submitted
    spec_path   VARCHAR,
    overrides   VARCHAR[],
    evaluations STRUCT(eval_id VARCHAR, {{evaluation}}, steps VARCHAR[])[], -- in the spec's order; a step is a number or 'last'
    seed_looks  BIGINT[],     -- a seed budget's looks: seeds per config at each; NULL: the spec says which seeds
    half_width  DOUBLE,       -- what a config's interval is to reach at one of them
    stages      MAP(VARCHAR, VARCHAR) -- of chains: stage -> the stage that it starts from (NULL: the base model)
);

CREATE TABLE sweep_runs (     -- one row per sweep, run and arm
    sweep          VARCHAR NOT NULL,
    run_id         VARCHAR NOT NULL,
    config_id      VARCHAR NOT NULL,
    seed           BIGINT NOT NULL,
    repeat         BIGINT NOT NULL, -- above 0: the run of this seed done again. Views but `repeats` are of repeat 0 alone
    arm            VARCHAR,
    stage          VARCHAR,   -- explore | confirm | parent (of runs that confirm)
    why            VARCHAR,
    added          TIMESTAMP,
    excluded       BOOLEAN NOT NULL,
    exclude_reason VARCHAR,
    forgiven       BIGINT NOT NULL  -- failed attempts that no longer count
);

CREATE TABLE configs (
    config_id   VARCHAR NOT NULL,
    model       VARCHAR,      -- hub:ID@REVISION or sha256:...
    prompt_name VARCHAR,
    {{training}}
);

CREATE TABLE studies (        -- one row per sweep that is a study: its configs were asked for, not listed
    sweep           VARCHAR NOT NULL,
    created         TIMESTAMP,
    objectives      STRUCT(metric VARCHAR, task VARCHAR, rule VARCHAR, step BIGINT, direction VARCHAR)[],
    space           JSON,     -- field -> its distribution: low, high, log, step, or choices; when
    sampler         VARCHAR,
    pruner          VARCHAR,  -- between seeds
    within          VARCHAR,  -- within a run
    seeds_per_trial BIGINT,
    n_trials        BIGINT    -- the budget; NULL: bounded otherwise
);

CREATE TABLE trials (         -- one row per trial of a study: a config, judged over several seeds
    sweep     VARCHAR NOT NULL,
    number    BIGINT NOT NULL,
    config_id VARCHAR,        -- of several trials, where the same point was asked for again; NULL: it could not be run (see `why`)
    origin    VARCHAR,        -- sampled | enqueued
    params    JSON,           -- searched field -> value; those that it does not have are absent
    state     VARCHAR NOT NULL, -- running | complete | pruned | diverged | failed | excluded
    value     DOUBLE,         -- by the first objective: mean over its seeds (of one pruned between seeds: over those that it got)
    "values"  DOUBLE[],       -- by each objective
    seeds     BIGINT,         -- how many were done
    why       VARCHAR,        -- why it was given up
    asked     TIMESTAMP,
    told      TIMESTAMP
);

CREATE TABLE jobs (           -- one row per journal: one try of one job
    sweep        VARCHAR NOT NULL,
    job          VARCHAR NOT NULL,
    "try"        BIGINT NOT NULL,
    launcher     VARCHAR,
    slurm_job_id VARCHAR,
    cluster      VARCHAR,     -- Slurm's name of it: in whose numbering slurm_job_id is
    partition    VARCHAR,
    node         VARCHAR,     -- as Slurm calls it
    host         VARCHAR,     -- as it calls itself
    gpu          VARCHAR,
    driver       VARCHAR,     -- of the GPU
    cpus         BIGINT,
    slots        BIGINT,
    code         VARCHAR,     -- digest of em_core
    "commit"     VARCHAR,
    dirty        BOOLEAN,     -- edited since that commit
    snapshot     VARCHAR,     -- the copy of the code that ran: ROOT/.code/SNAPSHOT
    python       VARCHAR,
    cuda         VARCHAR,     -- that torch was built for
    packages     MAP(VARCHAR, VARCHAR),
    started      TIMESTAMP,
    ended        TIMESTAMP,
    reason       VARCHAR      -- why it ended; NULL while running, or when it was killed
);

CREATE TABLE attempts (       -- every try at every run, winners or not
    attempt_id      VARCHAR NOT NULL,  -- JOB.TRY/RUN_ID/NUMBER
    sweep           VARCHAR NOT NULL,
    run_id          VARCHAR NOT NULL,
    job             VARCHAR NOT NULL,
    "try"           BIGINT NOT NULL,
    number          BIGINT NOT NULL,
    mode            VARCHAR NOT NULL,  -- train | eval
    status          VARCHAR NOT NULL,  -- running: no end is known
    cause           VARCHAR,           -- exception, crash, exit, killed, lost, stopped, cancelled, host out of memory, ...
    message         VARCHAR,
    traceback       VARCHAR,
    slot            BIGINT,
    device          VARCHAR,
    dtype           VARCHAR,
    threads         BIGINT,
    resumed_step    BIGINT,            -- the update it went on from; 0: from the start
    resumed_device  VARCHAR,           -- what computed the updates up to there; NULL: it started from the start
    trainer         VARCHAR,           -- digest of the files of a trainer of one's own
    started         TIMESTAMP,
    ended           TIMESTAMP,
    seconds         DOUBLE,
    steps           BIGINT,
    rollout_seconds DOUBLE,
    train_seconds   DOUBLE,
    eval_seconds    DOUBLE,
    peak_memory_mb  DOUBLE
);

CREATE TABLE job_ends (       -- how a try of a job ended that did not end by itself, as the scheduler and its journal say
    sweep    VARCHAR NOT NULL,
    job      VARCHAR NOT NULL,
    "try"    BIGINT NOT NULL,
    cause    VARCHAR,         -- a word of attempts.cause
    state    VARCHAR,         -- the scheduler's own word: TIMEOUT, NODE_FAIL, ...
    node     VARCHAR,
    mem_gb   DOUBLE,          -- host memory the job was given
    given_up VARCHAR[],       -- runs for which it was once too often
    recorded TIMESTAMP
);

CREATE TABLE runs (           -- one row per run, however many sweeps hold it
    run_id     VARCHAR NOT NULL,
    config_id  VARCHAR NOT NULL,
    seed       BIGINT NOT NULL,
    repeat     BIGINT NOT NULL,
    status     VARCHAR NOT NULL,
    attempts   BIGINT NOT NULL,
    failures   BIGINT NOT NULL,
    attempt_id VARCHAR,       -- the attempt that decides: the winner, else the latest with this status
    sweep      VARCHAR,       -- the sweep that attempt was made for
    cause      VARCHAR,
    message    VARCHAR,
    node       VARCHAR,
    gpu        VARCHAR,
    "commit"   VARCHAR,
    started    TIMESTAMP,
    ended      TIMESTAMP,
    seconds    DOUBLE,
    steps      BIGINT
);

CREATE TABLE metrics (        -- training metrics of the winning attempt
    run_id VARCHAR NOT NULL,
    step   INTEGER NOT NULL,  -- 1 is the first optimizer update
    name   VARCHAR NOT NULL,
    value  DOUBLE
);

CREATE TABLE evals (          -- per run, step and evaluation, the first attempt in winning order that has it
    run_id            VARCHAR NOT NULL,
    step              INTEGER NOT NULL,  -- 0 is the base model
    eval_id           VARCHAR NOT NULL,
    sweep             VARCHAR NOT NULL,  -- the sweep the attempt was made for
    attempt_id        VARCHAR NOT NULL,
    task              VARCHAR,
    n_questions       BIGINT,
    num_samples       BIGINT,
    accuracy          DOUBLE,            -- 0..1; NULL where logits were measured
    completion_length DOUBLE,            -- mean, tokens
    truncated         DOUBLE,            -- share 0..1
    seconds           DOUBLE,
    other             MAP(VARCHAR, DOUBLE),
    outcomes          BIT,               -- one bit per sample, question-major
    histogram         STRUCT("left" DOUBLE, width DOUBLE, counts BIGINT[])  -- of logits: equal bins from the left edge on
);

-- What DuckDB gets wrong for results: max, arg_max and ORDER BY rank NaN first, sem() divides by the population sd.
-- The finite_* aggregates skip NaN and infinities; a spread of one value is NULL, not 0.
CREATE MACRO finite(x) AS CASE WHEN isfinite(x) THEN x END;
CREATE MACRO finite_count(x) AS count(CASE WHEN isfinite(x) THEN x END);
CREATE MACRO finite_mean(x) AS avg(CASE WHEN isfinite(x) THEN x END);
CREATE MACRO finite_sd(x) AS stddev_samp(CASE WHEN isfinite(x) THEN x END);
CREATE MACRO finite_sem(x) AS finite_sd(x) / sqrt(finite_count(x));
CREATE MACRO finite_min(x) AS min(CASE WHEN isfinite(x) THEN x END);
CREATE MACRO finite_max(x) AS max(CASE WHEN isfinite(x) THEN x END);
CREATE MACRO finite_arg_max(arg, x) AS arg_max(arg, CASE WHEN isfinite(x) THEN x END);
CREATE MACRO max_over_min(x) AS CASE WHEN finite_min(x) > 0 THEN finite_max(x) / finite_min(x) END;

-- The .975 quantile of Student's t: exact to 1e-6 up to 120 degrees of freedom, then the Cornish-Fisher series.
CREATE MACRO t_quantile(df) AS CASE
    WHEN df < 1 THEN NULL
    WHEN df <= 120 THEN [
        12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
        2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
        2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
        2.039513, 2.036933, 2.034515, 2.032245, 2.030108, 2.028094, 2.026192, 2.024394, 2.022691, 2.021075,
        2.019541, 2.018082, 2.016692, 2.015368, 2.014103, 2.012896, 2.011741, 2.010635, 2.009575, 2.008559,
        2.007584, 2.006647, 2.005746, 2.004879, 2.004045, 2.003241, 2.002465, 2.001717, 2.000995, 2.000298,
        1.999624, 1.998972, 1.998341, 1.997730, 1.997138, 1.996564, 1.996008, 1.995469, 1.994945, 1.994437,
        1.993943, 1.993464, 1.992997, 1.992543, 1.992102, 1.991673, 1.991254, 1.990847, 1.990450, 1.990063,
        1.989686, 1.989319, 1.988960, 1.988610, 1.988268, 1.987934, 1.987608, 1.987290, 1.986979, 1.986675,
        1.986377, 1.986086, 1.985802, 1.985523, 1.985251, 1.984984, 1.984723, 1.984467, 1.984217, 1.983972,
        1.983731, 1.983495, 1.983264, 1.983038, 1.982815, 1.982597, 1.982383, 1.982173, 1.981967, 1.981765,
        1.981567, 1.981372, 1.981180, 1.980992, 1.980808, 1.980626, 1.980448, 1.980272, 1.980100, 1.979930
    ][CAST(df AS INTEGER)]
    ELSE 1.959964 + 2.372271 / df + 2.822507 / (df * df) END;
CREATE MACRO t_lo(x) AS finite_mean(x) - t_quantile(finite_count(x) - 1) * finite_sem(x);
CREATE MACRO t_hi(x) AS finite_mean(x) + t_quantile(finite_count(x) - 1) * finite_sem(x);

-- Wilson's 95% interval of a proportion: k of n.
CREATE MACRO wilson_lo(k, n) AS CASE WHEN n > 0 THEN greatest(0.0,
    (k + 1.920729 - 1.959964 * sqrt(k * (n - k) / n + 0.960365)) / (n + 3.841459)) END;
CREATE MACRO wilson_hi(k, n) AS CASE WHEN n > 0 THEN least(1.0,
    (k + 1.920729 + 1.959964 * sqrt(k * (n - k) / n + 0.960365)) / (n + 3.841459)) END;

CREATE VIEW scores AS
SELECT
    m.sweep, m.run_id, m.config_id, m.arm, m.seed, m.stage, m.excluded, r.status,
    e.step, e.eval_id, e.task, v.temperature AS eval_temperature, v.decoding AS eval_decoding, e.n_questions, e.num_samples,
    e.accuracy, e.completion_length, e.truncated, e.seconds AS eval_seconds, e.other AS eval_other,
    c.* EXCLUDE (config_id),
    r.node, r.gpu, r."commit"
FROM sweep_runs AS m
JOIN runs AS r ON r.run_id = m.run_id
JOIN configs AS c ON c.config_id = m.config_id
JOIN evals AS e ON e.run_id = m.run_id
LEFT JOIN (SELECT sweep, x.eval_id, x.temperature, x.decoding FROM sweeps, UNNEST(evaluations) AS u(x)) AS v
    ON v.sweep = m.sweep AND v.eval_id = e.eval_id
WHERE m.repeat = 0;

CREATE VIEW cells AS
WITH planned AS (
    SELECT m.sweep, m.arm, m.config_id, m.stage,
        count(*) AS n_planned,
        count(*) FILTER (WHERE r.status = 'completed') AS n_completed,
        count(*) FILTER (WHERE r.status = 'diverged') AS n_diverged,
        count(*) FILTER (WHERE r.status = 'failed') AS n_failed
    FROM sweep_runs AS m JOIN runs AS r ON r.run_id = m.run_id
    WHERE NOT m.excluded AND m.repeat = 0
    GROUP BY ALL
),
measured AS (
    SELECT run_id, step, eval_id, 'accuracy' AS metric, accuracy AS value FROM evals
    UNION ALL SELECT run_id, step, eval_id, 'completion_length', completion_length FROM evals
    UNION ALL SELECT run_id, step, eval_id, 'truncated', truncated FROM evals
    UNION ALL SELECT run_id, step, eval_id, 'seconds', seconds FROM evals
    UNION ALL SELECT run_id, step, eval_id, o.key, o.value
        FROM (SELECT run_id, step, eval_id, unnest(map_entries(other)) AS o FROM evals)
),
summary AS (
    SELECT m.sweep, m.arm, m.config_id, m.stage, x.step, x.eval_id, x.metric,
        finite_count(x.value) AS n,
        finite_mean(x.value) AS mean,
        finite_sd(x.value) AS sd,
        finite_sem(x.value) AS sem,
        t_lo(x.value) AS t_lo,
        t_hi(x.value) AS t_hi,
        finite_min(x.value) AS min,
        finite_max(x.value) AS max,
        max_over_min(x.value) AS max_over_min
    FROM measured AS x
    JOIN sweep_runs AS m ON m.run_id = x.run_id
    JOIN runs AS r ON r.run_id = x.run_id
    WHERE NOT m.excluded AND m.repeat = 0 AND r.status = 'completed' AND x.value IS NOT NULL
    GROUP BY ALL
)
SELECT p.sweep, p.arm, p.config_id, p.stage, s.step, s.eval_id, s.metric,
    p.n_planned, p.n_completed, p.n_diverged, p.n_failed,
    coalesce(s.n, 0) AS n, s.mean, s.sd, s.sem, s.t_lo, s.t_hi, s.min, s.max, s.max_over_min,
    c.* EXCLUDE (config_id)
FROM planned AS p
JOIN configs AS c ON c.config_id = p.config_id
LEFT JOIN summary AS s
    ON s.sweep = p.sweep AND s.config_id = p.config_id
    AND s.arm IS NOT DISTINCT FROM p.arm AND s.stage IS NOT DISTINCT FROM p.stage;

-- Where configs start that start from others: one row per config and each that it goes back to, with that one's fields.
CREATE VIEW chains AS
WITH RECURSIVE up AS (
    SELECT config_id, parent AS ancestor, from_step, 1 AS depth FROM configs WHERE parent IS NOT NULL
    UNION ALL
    SELECT up.config_id, c.parent, c.from_step, up.depth + 1
    FROM up JOIN configs AS c ON c.config_id = up.ancestor
    WHERE c.parent IS NOT NULL
)
SELECT up.config_id, up.ancestor, up.depth, up.from_step, c.* EXCLUDE (config_id, parent, from_step)
FROM up JOIN configs AS c ON c.config_id = up.ancestor;

CREATE VIEW answers AS
SELECT r.run_id, r.config_id, r.seed, r.status, e.step, e.eval_id, e.task,
    i // e.num_samples AS question, i % e.num_samples AS sample,
    get_bit(e.outcomes, CAST(i AS INTEGER)) = 1 AS correct
FROM evals AS e
JOIN runs AS r ON r.run_id = e.run_id,
UNNEST(range(bit_length(e.outcomes))) AS u(i)
WHERE r.repeat = 0;

-- Runs of one config and seed differ by nothing but what computed them: `conditions` says what that was.
CREATE VIEW repeats AS
WITH repeated AS (
    SELECT DISTINCT sweep, run_id, config_id, seed, repeat, excluded
    FROM sweep_runs SEMI JOIN (SELECT sweep, config_id, seed FROM sweep_runs WHERE repeat > 0) AS again
        USING (sweep, config_id, seed)
),
located AS (
    SELECT a.*, j.code, j.packages['torch'] AS torch, nullif(a.dtype, a.device) AS precision,
        CASE WHEN a.device IN ('external', 'none') THEN coalesce(j.gpu, 'CPU')
            WHEN a.device = 'cpu' THEN 'CPU' ELSE a.device END AS hardware
    FROM attempts AS a JOIN jobs AS j ON j.sweep = a.sweep AND j.job = a.job AND j."try" = a."try"
),
computed AS (
    SELECT sweep, attempt_id, hardware, concat_ws(', ', hardware, precision, threads || ' threads', 'torch ' || torch,
        'code ' || code, 'trainer ' || trainer,
        'begun on ' || CASE WHEN resumed_step > 0 AND resumed_device <> device THEN resumed_device END) AS conditions
    FROM located
)
SELECT m.sweep, m.run_id, m.config_id, m.seed, m.repeat, m.excluded, r.status,
    e.step, e.eval_id, e.task, e.n_questions, e.num_samples, e.accuracy, e.completion_length, e.truncated, e.outcomes,
    t.hardware, r.node,
    concat_ws('; measured on ', t.conditions, CASE WHEN x.conditions <> t.conditions THEN x.conditions END) AS conditions
FROM repeated AS m
JOIN runs AS r ON r.run_id = m.run_id
LEFT JOIN computed AS t ON t.sweep = r.sweep AND t.attempt_id = r.attempt_id
LEFT JOIN evals AS e ON e.run_id = m.run_id
LEFT JOIN computed AS x ON x.sweep = e.sweep AND x.attempt_id = e.attempt_id;

CREATE VIEW logit_histograms AS
SELECT e.run_id, e.step, e.eval_id,
    e.histogram.left + (i - 1) * e.histogram.width AS bin_left,
    e.histogram.left + i * e.histogram.width AS bin_right,
    e.histogram.counts[i] AS count
FROM evals AS e
JOIN runs AS r ON r.run_id = e.run_id,
UNNEST(range(1, len(e.histogram.counts) + 1)) AS u(i)
WHERE r.repeat = 0;

-- What the collector has read; not part of the results.
CREATE SCHEMA collector;
CREATE TABLE collector.attempts AS FROM attempts LIMIT 0;  -- as the journals say, without what job_ends adds
CREATE TABLE collector.meta (version VARCHAR NOT NULL, root VARCHAR NOT NULL);
CREATE TABLE collector.files (
    path     VARCHAR NOT NULL,  -- below the root
    size     BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    "offset" BIGINT NOT NULL,   -- everything before it is stored
    torn     BIGINT NOT NULL,   -- unfinished tail: read again next time
    head     VARCHAR NOT NULL   -- digest of its first line
);
