# One line per question that somebody would ask at night: what is measured, above which value, for how long, and where to look.
locals {
  subscription = { for of, id in var.subscriptions : of => "resource.type = \"pubsub_subscription\" AND resource.labels.subscription_id = \"${id}\"" }
  stream       = "resource.type = \"dataflow_job\" AND resource.labels.job_name = \"${var.name}-stream\""
  jobs         = "resource.type = \"dataflow_job\" AND resource.labels.job_name = monitoring.regex.full_match(\"${var.name}-(stream|batch)\")"

  always = {
    freshness = {
      title = "messages wait", metric = "pubsub.googleapis.com/subscription/oldest_unacked_message_age", of = local.subscription["job"], aligner = "ALIGN_MAX"
      above = var.thresholds.freshness_s, for_s = 300, severity = "CRITICAL"
      look  = "The oldest message of subscription ${var.subscriptions["job"]} has waited longer than ${var.thresholds.freshness_s} s. Is the streaming job there? Is it too slow (backlog, system lag)? Does it fail and try again (its log)?"
    }
    backlog = {
      title = "backlog", metric = "pubsub.googleapis.com/subscription/num_undelivered_messages", of = local.subscription["job"], aligner = "ALIGN_MAX"
      above = var.thresholds.backlog_messages, for_s = 600, severity = "WARNING"
      look  = "More than ${var.thresholds.backlog_messages} messages wait in subscription ${var.subscriptions["job"]}: more arrives than the job takes. Raise stream.max_workers, or find the slow step in the job's graph."
    }
    archive = {
      title = "the archive is behind", metric = "pubsub.googleapis.com/subscription/oldest_unacked_message_age", of = local.subscription["archive"], aligner = "ALIGN_MAX"
      above = var.thresholds.archive_s, for_s = 300, severity = "CRITICAL"
      look  = "Pub/Sub does not write raw messages to the archive bucket. Look at the state of subscription ${var.subscriptions["archive"]}: its rights on the bucket, or the key. Messages wait there until they expire, then the archive has a hole."
    }
    dead_letters = {
      title = "dead letters", metric = "pubsub.googleapis.com/topic/send_message_operation_count", of = "resource.type = \"pubsub_topic\" AND resource.labels.topic_id = \"${var.dead_letter_topic}\"", aligner = "ALIGN_RATE"
      above = var.thresholds.dead_letters_per_minute / 60, for_s = 300, severity = "WARNING"
      look  = "More than ${var.thresholds.dead_letters_per_minute} rows a minute are refused. `beam-pipelines dlq inspect` says by which stage and reason; subscription ${var.subscriptions["dead_letters"]} has the letters."
    }
    failed = {
      title = "a job has failed", metric = "dataflow.googleapis.com/job/is_failed", of = local.jobs, aligner = "ALIGN_MAX"
      above = 0, for_s = 0, severity = "CRITICAL"
      look  = "Dataflow has given up job ${var.name}-stream or ${var.name}-batch. The job's log has the sentence. A stream is started again by `terraform apply`; nothing acknowledged is lost. A batch commits at its end or not at all."
    }
  }
  of_stream = {
    data_freshness = {
      title = "outputs are old", metric = "dataflow.googleapis.com/job/data_watermark_age", of = local.stream, aligner = "ALIGN_MAX"
      above = var.thresholds.data_freshness_s, for_s = 600, severity = "WARNING"
      look  = "The watermark of job ${var.name}-stream is more than ${var.thresholds.data_freshness_s} s behind the clock: windows do not close. Find the stage whose watermark stands still."
    }
    system_lag = {
      title = "the job is stuck", metric = "dataflow.googleapis.com/job/system_lag", of = local.stream, aligner = "ALIGN_MAX"
      above = var.thresholds.system_lag_s, for_s = 600, severity = "WARNING"
      look  = "Something has been in work in job ${var.name}-stream for more than ${var.thresholds.system_lag_s} s: a bundle that is tried again and again, or a sink that does not answer. The job's log says which."
    }
  }
  measured = merge(local.always, var.has_stream ? local.of_stream : {})
}

resource "google_monitoring_alert_policy" "measured" {
  for_each              = local.measured
  project               = var.project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = merge(var.labels, { alert = each.key })

  conditions {
    display_name = each.value.title
    condition_threshold {
      filter          = "metric.type = \"${each.value.metric}\" AND ${each.value.of}"
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.above
      duration        = "${each.value.for_s}s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = each.value.aligner
        cross_series_reducer = each.value.aligner == "ALIGN_RATE" ? "REDUCE_SUM" : "REDUCE_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.look
  }

  alert_strategy {
    auto_close = "86400s"
  }
}

# A job that was cancelled has not failed: it is just not there.
resource "google_monitoring_alert_policy" "absent" {
  count                 = var.has_stream ? 1 : 0
  project               = var.project
  display_name          = "${var.name}: the streaming job is gone"
  combiner              = "OR"
  severity              = "CRITICAL"
  notification_channels = var.notification_channels
  user_labels           = merge(var.labels, { alert = "absent" })

  conditions {
    display_name = "no system lag is reported"
    condition_absent {
      filter   = "metric.type = \"dataflow.googleapis.com/job/system_lag\" AND ${local.stream}"
      duration = "${var.thresholds.absent_s}s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_MAX"
        cross_series_reducer = "REDUCE_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Job ${var.name}-stream has reported nothing for ${var.thresholds.absent_s} s. Was it drained or cancelled by hand? `terraform apply` starts it again; messages wait in subscription ${var.subscriptions["job"]}."
  }
}

# The scheduler has no metric for a call that was refused, only a log entry.
resource "google_monitoring_alert_policy" "not_started" {
  count                 = var.has_batch ? 1 : 0
  project               = var.project
  display_name          = "${var.name}: the batch was not started"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = var.notification_channels
  user_labels           = merge(var.labels, { alert = "not_started" })

  conditions {
    display_name = "Cloud Scheduler logs an error"
    condition_matched_log {
      filter = "resource.type = \"cloud_scheduler_job\" AND resource.labels.job_id = \"${var.name}-batch\" AND severity >= ERROR"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Dataflow refused to start ${var.name}-batch. 409: the batch before is still running. 403: the scheduler's rights. 404 or 400: the template or its parameters."
  }

  alert_strategy {
    auto_close = "86400s"
    notification_rate_limit {
      period = "3600s"
    }
  }
}
