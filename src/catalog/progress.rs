//! How far a long fetch has come, told to whoever shows it.

/// Hears about a fetch while it runs. Calls are frequent and must return at once.
pub trait Progress: Send + Sync {
    /// A stage begins that will handle `bytes` bytes.
    fn begin(&self, stage: &str, bytes: u64);
    /// So many bytes of the stage are done, those of an earlier, resumed run included.
    fn at(&self, done: u64);
    /// Something a user should know: a source that failed, a wait for another process.
    fn note(&self, line: &str);
}
