//! What was changed, by whom and when: the records, as people read them. No key and no hash of one is in it.

use std::fmt;

use super::{
    KeyId, LOG, Quota, TenantId, Tenants,
    record::{Change, Record, Scope},
};
use crate::store::{Entry, Log, StoreError};

/// One change to a tenant, or to the operator's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its place in the order of all changes to tenants, from 1.
    pub number: u64,
    /// Unix time in milliseconds, by the clock of the server that made it.
    pub at: u64,
    /// Who asked for it.
    pub by: String,
    /// Whom it concerns; `None` for the operator's own key.
    pub tenant: Option<TenantId>,
    /// What happened, in one word.
    pub what: &'static str,
    /// Which key came or went.
    pub key: Option<KeyId>,
    /// The same on one line.
    pub summary: String,
}

impl Tenants {
    /// At most `most` changes that come after a number, in order, as the store has them now.
    pub async fn changes_after(&self, after: u64, most: usize) -> Result<Vec<Changed>, StoreError> {
        let page = Log::<Record>::page(self.store(), LOG, after, most).await?;
        Ok(page.into_iter().map(changed).collect())
    }
}

fn changed(Entry { number, record }: Entry<Record>) -> Changed {
    let Record { at, by, change } = record;
    let tenant = match &change {
        Change::Created { .. } => Some(TenantId::of_record(number)),
        Change::OperatorReplaced { .. } => None,
        Change::KeyAdded { tenant, .. }
        | Change::KeyRevoked { tenant, .. }
        | Change::DefaultAdapter { tenant, .. }
        | Change::Quota { tenant, .. } => Some(*tenant),
    };
    let key = match &change {
        Change::OperatorReplaced { key } | Change::KeyAdded { key, .. } => Some(key.id()),
        Change::KeyRevoked { key, .. } => Some(key.clone()),
        Change::Created { operator, .. } => operator.map(|key| key.id()),
        Change::DefaultAdapter { .. } | Change::Quota { .. } => None,
    };
    let (what, summary) = (change.word(), change.to_string());
    Changed { number, at, by, tenant, what, key, summary }
}

impl Change {
    fn word(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::OperatorReplaced { .. } => "operator_replaced",
            Self::KeyAdded { .. } => "key_added",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::DefaultAdapter { .. } => "default_adapter",
            Self::Quota { .. } => "quota",
        }
    }
}

/// As a line of the log has it.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { name, operator: None } => write!(f, "tenant {name} created"),
            Self::Created { name, operator: Some(key) } => {
                write!(f, "tenant {name} created, the first, and operator's key {}", key.id())
            }
            Self::OperatorReplaced { key } => write!(f, "operator's key is {} now", key.id()),
            Self::KeyAdded { key, scope, expires, .. } => {
                let scope = match scope {
                    Scope::Infer => "infer",
                    Scope::Upload => "upload",
                    Scope::Admin => "admin",
                };
                write!(f, "key {} added, scope {scope}", key.id())?;
                expires.map_or(Ok(()), |at| write!(f, ", expires at {at} (unix time)"))
            }
            Self::KeyRevoked { key, .. } => write!(f, "key {key} revoked"),
            Self::DefaultAdapter { adapter: Some(name), .. } => {
                write!(f, "default adapter is {name}")
            }
            Self::DefaultAdapter { adapter: None, .. } => {
                f.write_str("default adapter is the base")
            }
            Self::Quota { quota, .. } => write!(f, "quota: {}", bounds(quota)),
        }
    }
}

/// All bounds of a quota, by the names that requests have for them.
fn bounds(quota: &Quota) -> String {
    let fields = serde_json::to_value(quota).unwrap_or_default();
    let fields = fields.as_object().into_iter().flatten();
    let bounds = fields.filter(|(_, bound)| !bound.is_null());
    let bounds: Vec<_> = bounds.map(|(field, bound)| format!("{field} {bound}")).collect();
    if bounds.is_empty() { "none".to_owned() } else { bounds.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::TenantName, *};
    use crate::store::Store;

    #[tokio::test]
    async fn changes_are_told_without_any_secret() {
        let (store, _) = Store::faulty();
        let tenants = Tenants::open(&store, None, Duration::from_hours(1)).await.unwrap();
        let acme = TenantName::parse("acme").unwrap();
        let created = tenants.create("open", &acme).await.unwrap();
        let (key, card) = tenants.add_key("operator", &acme, Scope::Upload, None).await.unwrap();
        let quota = Quota { adapters: Some(3), ..Quota::default() };
        tenants.set_quota("operator", &acme, quota).await.unwrap();
        tenants.set_default_adapter("operator", &acme, Some("sql".to_owned())).await.unwrap();
        tenants.revoke_key("operator", &acme, &card.id).await.unwrap();
        let operator = tenants.replace_operator("operator").await.unwrap();
        let all = tenants.changes_after(0, 100).await.unwrap();
        let words: Vec<_> = all.iter().map(|change| change.what).collect();
        assert_eq!(
            words,
            [
                "created",
                "key_added",
                "quota",
                "default_adapter",
                "key_revoked",
                "operator_replaced"
            ]
        );
        assert_eq!(all[1].summary, format!("key {} added, scope upload", card.id));
        assert_eq!((&all[1].key, &all[4].key), (&Some(card.id.clone()), &Some(card.id)));
        assert!(all[2].summary == "quota: adapters 3", "{}", all[2].summary);
        assert_eq!((all[0].by.as_str(), all[1].by.as_str()), ("open", "operator"));
        assert!(all[..5].iter().all(|change| change.tenant == Some(created.card.id)));
        assert_eq!(all[5].tenant, None);
        let shown = format!("{all:?}");
        for secret in [key, operator, created.operator.unwrap()] {
            let hash = String::from(secret.hash());
            assert!(!shown.contains(secret.reveal()) && !shown.contains(&hash), "{shown}");
        }
        assert_eq!(tenants.changes_after(2, 1).await.unwrap(), all[2..3]);
    }
}
