use super::*;

const NEVER: Duration = Duration::from_hours(1);

fn name(text: &str) -> TenantName {
    TenantName::parse(text).unwrap()
}

async fn open(store: &Store) -> Tenants {
    Tenants::open(store, None, NEVER).await.unwrap()
}

fn who(tenants: &Tenants, key: &Key) -> Option<Caller> {
    tenants.identify(Some(key.reveal()), SystemTime::now()).ok()
}

#[tokio::test]
async fn without_tenants_everybody_is_the_default_one() {
    let (store, _) = Store::faulty();
    let tenants = open(&store).await;
    for key in [None, Some("none"), Some("sk-anything")] {
        let caller = tenants.identify(key, SystemTime::now()).unwrap();
        assert_eq!(caller.tenant, TenantId::DEFAULT);
        assert!(caller.may(Scope::Admin) && caller.is_operator());
    }
    assert_eq!(tenants.list().len(), 1);
}

#[tokio::test]
async fn the_first_tenant_ends_open_access_and_brings_the_operators_key() {
    let (store, _) = Store::faulty();
    let tenants = open(&store).await;
    let Created { card, operator } = tenants.create("open", &name("acme")).await.unwrap();
    let operator = operator.unwrap();
    assert!(!tenants.has_own_operator());
    assert_eq!((card.name.as_str(), card.id.number()), ("acme", 1));
    assert!(!tenants.are_open());
    assert_eq!(tenants.identify(None, SystemTime::now()), Err(Unidentified));
    let caller = who(&tenants, &operator).unwrap();
    assert!(caller.is_operator() && !caller.may(Scope::Infer), "it is nobody's tenant");
    let second = tenants.create("operator", &name("beta")).await.unwrap();
    assert!(second.operator.is_none(), "once");
    let again = open(&store).await;
    assert!(who(&again, &operator).unwrap().is_operator(), "a restart knows it");
    let new = tenants.replace_operator("operator").await.unwrap();
    assert_eq!(who(&tenants, &operator), None);
    assert!(who(&tenants, &new).unwrap().is_operator());
    let taken = tenants.create("operator", &name("acme")).await;
    assert!(matches!(taken, Err(NotDone::Taken(_))), "{taken:?}");
    let taken = tenants.create("operator", &name("default")).await;
    assert!(matches!(taken, Err(NotDone::Taken(_))), "{taken:?}");
}

#[tokio::test]
async fn an_operators_own_key_closes_the_server_from_the_start() {
    let (store, _) = Store::faulty();
    let own = Key::parse("correct-horse-battery").unwrap();
    let tenants = Tenants::open(&store, Some(&own), NEVER).await.unwrap();
    assert!(!tenants.are_open());
    assert!(who(&tenants, &own).unwrap().is_operator());
    assert_eq!(
        tenants.identify(Some("correct-horse-batterx"), SystemTime::now()),
        Err(Unidentified)
    );
    assert!(tenants.has_own_operator(), "and no record ends it");
    let created = tenants.create("operator", &name("acme")).await.unwrap();
    assert!(created.operator.is_none());
}

#[tokio::test]
async fn keys_name_their_tenant_and_what_they_allow() {
    let (store, _) = Store::faulty();
    let tenants = open(&store).await;
    tenants.create("open", &name("acme")).await.unwrap();
    let beta = tenants.create("open", &name("beta")).await.unwrap().card.id;
    let (key, card) = tenants.add_key("me", &name("beta"), Scope::Upload, None).await.unwrap();
    let caller = who(&tenants, &key).unwrap();
    assert_eq!(caller, Caller { tenant: beta, right: Right::Key(card.id.clone(), Scope::Upload) });
    assert!(caller.may(Scope::Infer) && caller.may(Scope::Upload) && !caller.may(Scope::Admin));
    assert!(!caller.is_operator());
    let (default, _) = tenants.add_key("me", &name("default"), Scope::Infer, None).await.unwrap();
    assert_eq!(who(&tenants, &default).unwrap().tenant, TenantId::DEFAULT);
    // Several per tenant, each by itself.
    let (second, other) = tenants.add_key("me", &name("beta"), Scope::Infer, None).await.unwrap();
    let long = KeyId::named(&format!("{}junk", card.id));
    assert!(tenants.revoke_key("me", &name("beta"), &long).await.is_err());
    let now = SystemTime::now();
    assert!(tenants.still_counts(&caller, now));
    tenants.revoke_key("me", &name("beta"), &card.id).await.unwrap();
    assert!(!tenants.still_counts(&caller, now));
    assert_eq!(who(&tenants, &key), None);
    assert_eq!(who(&tenants, &second).unwrap().tenant, beta);
    assert_eq!(tenants.card(&name("beta")).unwrap().keys, [other]);
    let gone = tenants.revoke_key("me", &name("beta"), &card.id).await;
    assert!(matches!(gone, Err(NotDone::NoKey(_))), "{gone:?}");
    let nobody = tenants.add_key("me", &name("nobody"), Scope::Infer, None).await;
    assert!(matches!(nobody, Err(NotDone::NoTenant(_))), "{nobody:?}");
    for bad in ["", " ", &second.reveal()[1..], &second.reveal().to_uppercase()] {
        assert_eq!(tenants.identify(Some(bad), SystemTime::now()), Err(Unidentified), "{bad}");
    }
}

#[tokio::test]
async fn a_key_ends_when_it_was_to_end() {
    let (store, _) = Store::faulty();
    let tenants = open(&store).await;
    tenants.create("open", &name("acme")).await.unwrap();
    let now = SystemTime::now();
    let expires = unix_seconds(now) + 60;
    let add = |at| {
        let tenants = tenants.clone();
        async move { tenants.add_key("me", &name("acme"), Scope::Infer, Some(at)).await }
    };
    let (key, card) = add(expires).await.unwrap();
    assert_eq!(card.expires, Some(expires));
    assert!(tenants.identify(Some(key.reveal()), now).is_ok());
    let later = now + Duration::from_secs(61);
    assert_eq!(tenants.identify(Some(key.reveal()), later), Err(Unidentified));
    assert!(matches!(add(unix_seconds(now)).await, Err(NotDone::Expired)));
}

#[tokio::test]
async fn servers_on_one_store_learn_of_keys_and_their_end() {
    let (store, _) = Store::faulty();
    let (one, two) = (open(&store).await, open(&store).await);
    one.create("open", &name("acme")).await.unwrap();
    let (key, card) = one.add_key("me", &name("acme"), Scope::Infer, None).await.unwrap();
    assert!(two.are_open());
    two.refresh().await.unwrap();
    assert!(!two.are_open());
    assert_eq!(who(&two, &key), who(&one, &key));
    two.revoke_key("me", &name("acme"), &card.id).await.unwrap();
    one.refresh().await.unwrap();
    assert_eq!(who(&one, &key), None);
    // Whoever comes second learns that there is an operator already.
    let three = open(&store).await;
    assert!(three.create("x", &name("late")).await.unwrap().operator.is_none());
}

#[tokio::test]
async fn of_two_first_tenants_one_brings_the_operators_key() {
    let (store, _) = Store::faulty();
    let (one, two) = (open(&store).await, open(&store).await);
    let first = one.create("open", &name("acme")).await.unwrap();
    let second = two.create("open", &name("beta")).await.unwrap();
    assert!(first.operator.is_some() && second.operator.is_none());
    assert_eq!(two.list().len(), 3);
}

#[tokio::test]
async fn no_key_is_in_the_store_or_in_what_is_printed() {
    let root = tempfile::TempDir::new().unwrap();
    let location = crate::store::Location::Folder(root.path().to_owned());
    let store = Store::open(&location).await.unwrap();
    let tenants = open(&store).await;
    let operator = tenants.create("open", &name("acme")).await.unwrap().operator.unwrap();
    let (key, _) = tenants.add_key("me", &name("acme"), Scope::Infer, None).await.unwrap();
    let mut shown = format!("{tenants:?}");
    for entry in root.path().join("logs/tenants").read_dir().unwrap() {
        shown += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    for secret in [operator, key] {
        assert!(!shown.contains(secret.reveal()));
    }
}

#[tokio::test]
async fn whoever_goes_by_quotas_learns_when_one_was_set() {
    let (store, _) = Store::faulty();
    let tenants = open(&store).await;
    let acme = tenants.create("open", &name("acme")).await.unwrap().card.id;
    assert_eq!(tenants.quotas_since(0), None);
    let quota = Quota { resident_max_bytes: Some(7), ..Quota::default() };
    tenants.set_quota("me", &name("acme"), quota).await.unwrap();
    let (edition, quotas) = tenants.quotas_since(0).unwrap();
    assert_eq!(quotas, [(TenantId::DEFAULT, Quota::default()), (acme, quota)]);
    assert_eq!(tenants.quotas_since(edition), None);
    let contradiction = Quota { resident_min_bytes: Some(8), ..quota };
    let refused = tenants.set_quota("me", &name("acme"), contradiction).await;
    assert!(matches!(refused, Err(NotDone::Quota(_))), "{refused:?}");
    assert_eq!(open(&store).await.quota(acme), quota);
}

#[tokio::test]
async fn what_default_means_is_a_tenants_own() {
    let (store, _) = Store::faulty();
    let tenants = open(&store).await;
    let acme = tenants.create("open", &name("acme")).await.unwrap().card.id;
    let set = |adapter: Option<&str>| {
        let (tenants, adapter) = (tenants.clone(), adapter.map(str::to_owned));
        async move { tenants.set_default_adapter("me", &name("acme"), adapter).await.unwrap() }
    };
    assert_eq!(set(Some("sql")).await.default_adapter.as_deref(), Some("sql"));
    assert_eq!(tenants.default_adapter(acme).as_deref(), Some("sql"));
    assert_eq!(tenants.default_adapter(TenantId::DEFAULT), None);
    assert_eq!(set(None).await.default_adapter, None);
}
