//! An upload's body: `multipart/form-data` with two files, taken apart as it arrives.

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody as _},
    http::{
        HeaderMap, HeaderValue,
        header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT},
    },
};
use futures_util::{Stream, StreamExt as _};
use multer::{Field, Multipart};
use tokio::time::timeout;

use super::{
    error::ApiError,
    places::{Place, Places},
};
use crate::{
    adapter::{Part, Upload},
    tenant::TenantId,
};

/// Uploads at once, from their first byte to their answer, and of these those of one tenant.
const UPLOADS: usize = 16;
const UPLOADS_EACH: usize = 6;
/// How long an upload waits for its place; nothing of it is read meanwhile.
const LINE: Duration = Duration::from_secs(5);
/// The least bytes a second, on average and after [`SILENCE`]: slower senders would hold places from others.
const LEAST_RATE: u64 = 16 << 10;
/// How long nothing may arrive.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the whole may take.
const TIME: Duration = Duration::from_mins(15);
/// Most bytes of the body that belong to neither file before they are followed by some that do: headers of a part, text
/// fields, what is before the first part.
const AROUND: u64 = 256 << 10;
/// Most parts; two are files, the others are text fields that nobody asked for.
const PARTS: usize = 32;
/// What is still read of a refused upload, so that its sender comes to read why.
const REST: u64 = 64 << 20;
const REST_TIME: Duration = Duration::from_secs(10);
/// Names that weights have where they are pickled.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// A body that may be an upload.
pub(super) struct Incoming {
    content_type: Option<HeaderValue>,
    encoded: bool,
    /// The sender waits for a sign before it sends the body.
    expects: bool,
    least: u64,
    began: Instant,
    body: Arc<Source>,
}

/// Places for uploads on their way.
#[derive(Debug)]
pub(super) struct Uploads(Places);

impl Uploads {
    pub(super) fn new() -> Self {
        Self(Places::new(UPLOADS, UPLOADS_EACH))
    }

    /// Waits for a place, but not for ever.
    pub(super) async fn take(&self, tenant: TenantId) -> Result<Place, ApiError> {
        let place = timeout(LINE, self.0.take(tenant)).await;
        place.map_err(|_| ApiError::overloaded("too many uploads are on their way"))
    }
}

/// The body, shared between the parser and whoever reads the rest.
struct Source {
    body: Mutex<BodyDataStream>,
    /// Bytes that have arrived.
    arrived: AtomicU64,
    touched: AtomicBool,
}

impl Incoming {
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        let least = body.size_hint().lower();
        let source = Source {
            body: Mutex::new(body.into_data_stream()),
            arrived: AtomicU64::new(0),
            touched: AtomicBool::new(false),
        };
        Self {
            content_type: headers.get(CONTENT_TYPE).cloned(),
            encoded: headers.contains_key(CONTENT_ENCODING),
            expects: headers.contains_key(EXPECT),
            least,
            began: Instant::now(),
            body: Arc::new(source),
        }
    }

    /// Takes both files in.
    pub(super) async fn receive(&self, mut upload: Upload) -> Result<Upload, ApiError> {
        let boundary = self.boundary()?;
        if self.least > upload.most_bytes().saturating_add(AROUND) {
            return Err(ApiError::body_too_large(
                upload.most_bytes().try_into().unwrap_or(usize::MAX),
            ));
        }
        let taken = Arc::new(AtomicU64::new(0));
        let feed = Feed { source: Arc::clone(&self.body), taken: Arc::clone(&taken), rests: false };
        let mut form = Multipart::new(feed, boundary);
        let files = async {
            let mut parts = 0;
            while let Some(field) = next(form.next_field()).await? {
                parts += 1;
                if parts > PARTS {
                    return Err(ApiError::malformed(format!(
                        "the upload has more than {PARTS} parts"
                    )));
                }
                self.catch_up(&taken);
                self.part(field, &mut upload, &taken).await?;
            }
            Ok(())
        };
        timeout(TIME, files).await.unwrap_or_else(|_| Err(ApiError::slow_body()))?;
        Ok(upload)
    }

    fn boundary(&self) -> Result<String, ApiError> {
        if self.encoded {
            return Err(ApiError::wrong_type("a body with a Content-Encoding is not accepted"));
        }
        let kind = self.content_type.as_ref().and_then(|kind| kind.to_str().ok()).unwrap_or("");
        multer::parse_boundary(kind).map_err(|_| {
            ApiError::wrong_type(
                "an adapter is uploaded as multipart/form-data with the parts adapter_config.json and adapter_model.safetensors",
            )
        })
    }

    fn check_rate(&self) -> Result<(), ApiError> {
        let (time, arrived) = (self.began.elapsed(), self.body.arrived.load(Ordering::Relaxed));
        let slow = time > SILENCE && arrived < LEAST_RATE.saturating_mul(time.as_secs());
        if slow { Err(ApiError::slow_body()) } else { Ok(()) }
    }

    /// What has arrived so far is accounted for.
    fn catch_up(&self, taken: &AtomicU64) {
        taken.store(self.body.arrived.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    async fn part(
        &self,
        mut field: Field<'_>,
        upload: &mut Upload,
        taken: &AtomicU64,
    ) -> Result<(), ApiError> {
        let name = field.name().unwrap_or("").to_owned();
        let Some(part) = Part::of_file(&name) else {
            if let Some(file) = field.file_name() {
                return Err(stray(&name, file));
            }
            // Text fields are passed over; the feed bounds them.
            while next(field.chunk()).await?.is_some() {}
            return Ok(());
        };
        upload.begin(part).await.map_err(|error| ApiError::unreceived(&error))?;
        while let Some(bytes) = next(field.chunk()).await? {
            self.check_rate()?;
            taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            upload.write(part, &bytes).await.map_err(|error| ApiError::unreceived(&error))?;
        }
        Ok(())
    }

    /// Reads what is left of a refused upload, within bounds: a sender that is cut off while it sends may never see the
    /// answer.
    pub(super) async fn finish(&self) {
        if self.expects && !self.body.touched.load(Ordering::Relaxed) {
            // It has not begun, and will not.
            return;
        }
        let mut left = REST;
        let rest = async {
            while let Some(Ok(bytes)) = std::future::poll_fn(|cx| self.body.poll(cx)).await {
                left = left.saturating_sub(bytes.len() as u64);
                if left == 0 {
                    break;
                }
            }
        };
        drop(timeout(REST_TIME, rest).await);
    }
}

impl Source {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        self.touched.store(true, Ordering::Relaxed);
        let polled =
            self.body.lock().expect("the body's own code does not panic").poll_next_unpin(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.arrived.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        polled
    }
}

/// Why the parser is given no more.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error("more than {AROUND} bytes belong to no file")]
    Around,
    #[error("the body broke off")]
    Broken,
}

/// What the parser is fed with.
///
/// It would read for as long as there is something to read, and look at it then. So each piece is followed by a rest, and
/// what has arrived without being taken out again is bounded.
struct Feed {
    source: Arc<Source>,
    /// Bytes that the parser has given out.
    taken: Arc<AtomicU64>,
    rests: bool,
}

impl Stream for Feed {
    type Item = Result<Bytes, Stopped>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rests) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let arrived = self.source.arrived.load(Ordering::Relaxed);
        if arrived.saturating_sub(self.taken.load(Ordering::Relaxed)) > AROUND {
            return Poll::Ready(Some(Err(Stopped::Around)));
        }
        let polled = self.source.poll(cx).map_err(|_| Stopped::Broken);
        self.rests = polled.is_ready();
        polled
    }
}

/// What the parser gives, in time.
async fn next<T>(
    step: impl Future<Output = Result<Option<T>, multer::Error>>,
) -> Result<Option<T>, ApiError> {
    match timeout(SILENCE, step).await {
        Ok(Ok(next)) => Ok(next),
        Ok(Err(error)) => Err(malformed(&error)),
        Err(_) => Err(ApiError::slow_body()),
    }
}

fn malformed(error: &multer::Error) -> ApiError {
    let why = match error {
        multer::Error::StreamReadFailed(why) => why.to_string(),
        multer::Error::IncompleteStream | multer::Error::IncompleteFieldData { .. } => {
            "it ends before its last boundary".to_owned()
        }
        other => other.to_string(),
    };
    ApiError::malformed(format!("the upload is not the multipart/form-data that it says: {why}"))
}

/// A file that is neither of the two.
fn stray(part: &str, file: &str) -> ApiError {
    let is_pickle = |name: &str| {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| PICKLES.contains(&extension))
    };
    if is_pickle(part) || is_pickle(file) {
        let message = "the weights are a pickle, which can run code when it is read: safetensors only; \
                       send them as adapter_model.safetensors";
        return ApiError::unfit("pickle", message);
    }
    if part == "adapters.safetensors" || file == "adapters.safetensors" {
        let message = "adapters.safetensors belongs to an MLX (mlx-lm) adapter, which has no peft_type: \
                       convert it to PEFT";
        return ApiError::unfit("mlx_adapter", message);
    }
    ApiError::unfit(
        "unexpected_file",
        "an upload has the two files adapter_config.json and adapter_model.safetensors, each in a part \
         of that name, and no others",
    )
}
