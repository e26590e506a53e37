//! A store in memory that fails when a test says so.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It does not arrive.
    RequestLost,
    /// It is done, and nobody is told.
    AnswerLost,
    /// It is done, the answer is lost, and a layer below repeats it.
    RetriedAfterLoss,
    /// No room is left.
    Full,
}

/// Faults to come.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    puts: Mutex<VecDeque<Fault>>,
    down: Mutex<bool>,
    asked: AtomicUsize,
}

impl Faults {
    /// The next put meets this, after those said before.
    pub(crate) fn next_put(&self, fault: Fault) {
        self.puts.lock().unwrap().push_back(fault);
    }

    /// No put meets a fault that was said before.
    pub(crate) fn none(&self) {
        self.puts.lock().unwrap().clear();
    }

    /// From now on no request arrives.
    pub(crate) fn down(&self) {
        *self.down.lock().unwrap() = true;
    }

    /// From now on requests arrive again.
    pub(crate) fn up(&self) {
        *self.down.lock().unwrap() = false;
    }

    /// How many requests there were.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if *self.down.lock().unwrap() {
            Err(lost(io::ErrorKind::ConnectionRefused))
        } else {
            Ok(())
        }
    }
}

#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    faults: Arc<Faults>,
}

pub(super) fn objects() -> (Arc<dyn ObjectStore>, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    (Arc::new(Faulty { inner: InMemory::new(), faults: Arc::clone(&faults) }), faults)
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

fn lost(kind: io::ErrorKind) -> object_store::Error {
    object_store::Error::Generic { store: "Faulty", source: Box::new(io::Error::from(kind)) }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.faults.check()?;
        let fault = self.faults.puts.lock().unwrap().pop_front();
        match fault {
            None | Some(Fault::None) => self.inner.put_opts(location, payload, opts).await,
            Some(Fault::RequestLost) => Err(lost(io::ErrorKind::TimedOut)),
            Some(Fault::Full) => Err(lost(io::ErrorKind::StorageFull)),
            Some(Fault::AnswerLost) => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(lost(io::ErrorKind::TimedOut))
            }
            Some(Fault::RetriedAfterLoss) => {
                self.inner.put_opts(location, payload.clone(), opts.clone()).await?;
                self.inner.put_opts(location, payload, opts).await
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.faults.check()?;
        let fault = self.faults.puts.lock().unwrap().pop_front();
        match fault {
            None | Some(Fault::None) => self.inner.put_multipart_opts(location, opts).await,
            Some(_) => Err(lost(io::ErrorKind::TimedOut)),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.check()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.faults.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
