//! Loss, refusals, and how a queue pair ends.
