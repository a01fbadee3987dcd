-- Which airport kept people waiting, and how often?
SELECT origin, sum(flights) AS flights, round(sum(mean_delay * flights) / sum(flights), 1) AS mean_delay, sum(delayed) AS delayed_over_15_min,
       round(100 * sum(delayed) / sum(flights), 1) AS percent
FROM delays_by_hour GROUP BY origin ORDER BY origin;

-- Which days were not 24 hours long on New York's clock, and what flew on them?
SELECT _window_start, _window_end, date_diff('hour', _window_start, _window_end) AS hours, sum(flights) AS flights
FROM airline_days WHERE date_diff('hour', _window_start, _window_end) <> 24 GROUP BY ALL ORDER BY _window_start;

-- Why rows were refused: reason, failing checks, and what the file said.
SELECT reason, failures[1].name AS first_failure, count(*) AS rows, min(message) AS for_example
FROM dead_letters GROUP BY ALL ORDER BY rows DESC;
