//! Tries an adapter that nobody else can see yet.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, try_join};

use super::{answer::Answer, app::App};
use crate::{
    adapter::{Extras, Lease, SmokeTest, Trial, Unproved},
    engine::{Event, Failure, Job, Lane, Logprob, Salt, Sampling, Scope},
    text::{self, Chat, Ending, Framing, Keep, Message, Specials, Stops},
};

/// Tokens that are computed: enough that whatever an adapter changes shows somewhere.
const TOKENS: u32 = 16;
/// The likeliest tokens that are compared beside each.
const LIKELIEST: usize = 5;
/// How long a trial may wait and take. It stands in line like other requests.
const TIME: Duration = Duration::from_mins(1);

/// Compares an adapter with the base on the engine that will run it.
pub(super) struct EngineTrial<'a> {
    app: &'a App,
}

impl<'a> EngineTrial<'a> {
    pub(super) fn new(app: &'a App) -> Self {
        Self { app }
    }

    /// Scores of a fixed prompt, through the adapter or without one.
    async fn scores(&self, adapter: Option<Lease>) -> Result<Vec<Logprob>, Unproved> {
        let vocab = u32::try_from(self.app.text().vocab()).unwrap_or(u32::MAX).max(1);
        let job = Job {
            // Spread over the vocabulary; a small one has each token more often.
            prompt: (0..TOKENS).map(|at| (at + 1).wrapping_mul(2_654_435_761) % vocab).collect(),
            adapter,
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            max_tokens: 1,
            min_tokens: 0,
            guide: None,
            stop_tokens: [].into(),
            logprobs: Some(LIKELIEST),
            prompt_logprobs: Some(LIKELIEST),
            pooling: None,
            // In nobody's line, and for nobody to find.
            lane: Lane(u32::MAX),
            scope: Scope(u32::MAX),
            salt: Salt::default(),
            deadline: Some(Instant::now() + TIME),
        };
        let not_now = |why: String| Unproved::NotNow(why);
        let submitted = self.app.generator().submit(job);
        let mut events = submitted.map_err(|refused| not_now(refused.to_string()))?;
        let mut scores = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Event::Prompt(prompt) => scores.extend(prompt),
                Event::Token { logprob, .. } => scores.extend(logprob),
                Event::Finished(_) => return Ok(scores),
                Event::Failed(Failure::NotANumber) => return Err(Unproved::NotFinite),
                Event::Failed(failure) => return Err(not_now(failure.to_string())),
                Event::Begun { .. } | Event::Pooled(_) => {}
            }
        }
        Err(not_now("the engine has ended".to_owned()))
    }

    /// The greedy answer to a smoke test, as a request without any terms of its own would get it.
    async fn answer(
        &self,
        adapter: Lease,
        (test, extras): (&SmokeTest, &Extras),
    ) -> Result<String, Unproved> {
        let text = self.app.text();
        let prompt = self.prompt(&chat(test), extras).await?;
        let not_now = |why: String| Unproved::NotNow(why);
        let job = Job {
            prompt,
            adapter: Some(adapter),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            max_tokens: test.tokens(),
            min_tokens: 0,
            guide: None,
            stop_tokens: Arc::clone(text.stop_tokens()),
            logprobs: None,
            prompt_logprobs: None,
            pooling: None,
            lane: Lane(u32::MAX),
            scope: Scope(u32::MAX),
            salt: Salt::default(),
            deadline: Some(Instant::now() + TIME),
        };
        let submitted = self.app.generator().submit(job);
        let mut events = submitted.map_err(|refused| not_now(refused.to_string()))?;
        let stops = Stops::new(extras.stop.clone(), Keep::Cut);
        let mut answer = Answer::new(text.detok(Specials::Hide), stops, 0);
        let mut said = String::new();
        while let Some(event) = events.next().await {
            let piece = answer.take(event).map_err(|failure| match failure {
                Failure::NotANumber => Unproved::NotFinite,
                failure => not_now(failure.to_string()),
            })?;
            said.push_str(&piece.text);
            if piece.end.is_some() {
                return Ok(said);
            }
        }
        Err(not_now("the engine has ended".to_owned()))
    }

    /// The tokens of a chat, by the template that the adapter brings, or the base's own; a base without one is asked as it is.
    async fn prompt(&self, chat: &Chat, extras: &Extras) -> Result<Vec<u32>, Unproved> {
        let text = self.app.text();
        let (rendered, framing) = match &extras.chat_template {
            Some(source) => (self.render(source, chat).await?, Framing::Bare),
            None if text.has_template() => {
                let rendered = text.render(chat, Ending::Prompt);
                (rendered.map_err(|error| unrendered(&error, chat))?, Framing::Bare)
            }
            None => {
                let said: Vec<_> = chat.messages.iter().map(|message| &*message.content).collect();
                (said.join("\n"), Framing::Framed)
            }
        };
        text.encode(&rendered, framing).map_err(|error| unusable(&error))
    }

    async fn render(&self, source: &str, chat: &Chat) -> Result<String, Unproved> {
        let rendering = self.app.text().rendering(source, chat, Ending::Prompt);
        let rendered = self.app.renderers().render(None, &rendering).await;
        let rendered =
            rendered.map_err(|_| Unproved::NotNow("its chats cannot be rendered".to_owned()))?;
        rendered.map_err(|error| unrendered(&error, chat))
    }
}

/// Who uploads a template can change it, and not the chat.
fn unrendered(error: &text::Error, chat: &Chat) -> Unproved {
    let text::Error::TooMuchWork = error else { return unusable(error) };
    let chat = match chat.messages.len() {
        1 => "a chat of one message".to_owned(),
        messages => format!("the smoke test's chat of {messages} messages"),
    };
    Unproved::Template(format!("rendering {chat} takes it more work than is allowed"))
}

fn unusable(error: &text::Error) -> Unproved {
    Unproved::Template(error.to_string())
}

fn chat(test: &SmokeTest) -> Chat {
    let said = test.chat();
    let messages = said.into_iter().map(|said| Message::new(said.role, said.content));
    messages.collect::<Vec<_>>().into()
}

impl Trial for EngineTrial<'_> {
    fn probe(&self, adapter: Lease) -> BoxFuture<'_, Result<(), Unproved>> {
        Box::pin(async move {
            let (base, adapted) = try_join(self.scores(None), self.scores(Some(adapter))).await?;
            let finite = |score: &Logprob| score.logprob.is_finite();
            if !adapted.iter().all(finite) {
                return Err(Unproved::NotFinite);
            }
            // Bit for bit, because the base computes the same bits each time.
            if base == adapted { Err(Unproved::NoEffect) } else { Ok(()) }
        })
    }

    fn rehearse(
        &self,
        adapter: Lease,
        extras: Arc<Extras>,
    ) -> BoxFuture<'_, Result<Option<String>, Unproved>> {
        Box::pin(async move {
            if let Some(source) = &extras.chat_template {
                // A chat for which every template must have a prompt.
                let sample = vec![Message::new("user", "How do I cook rice?")].into();
                if self.render(source, &sample).await?.is_empty() {
                    let problem = "it renders a chat to an empty prompt".to_owned();
                    return Err(Unproved::Template(problem));
                }
            }
            match &extras.smoke_test {
                Some(test) => self.answer(adapter, (test, &extras)).await.map(Some),
                None => Ok(None),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uploads_a_template_that_is_too_costly_is_not_told_to_send_fewer_messages() {
        let said = |messages: usize| {
            let chat = vec![Message::new("user", "Hello?"); messages].into();
            unrendered(&text::Error::TooMuchWork, &chat).to_string()
        };
        let told = said(1);
        assert!(
            told.ends_with("a chat of one message takes it more work than is allowed"),
            "{told}"
        );
        assert!(!told.contains("send fewer"), "{told}");
        assert!(said(2).contains("chat of 2 messages"));
        let other = unrendered(&text::Error::NoTemplate, &Chat::default()).to_string();
        assert!(other.contains("no chat template"), "{other}");
    }
}
