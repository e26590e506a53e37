//! What `chorus adapter` does on the command line.

use super::*;

#[test]
fn the_command_line_does_all_of_it() {
    let server = Server::start(&[]);
    let folder = shipped_adapters().join("pirate");
    let folder = folder.to_str().unwrap();
    let done = |arguments: &[&str], shows: &str| {
        let (success, text) = command(&server, arguments);
        assert!(success && text.contains(shows), "{arguments:?}: {text}");
        text
    };
    let refused = |arguments: &[&str], shows: &str| {
        let (success, text) = command(&server, arguments);
        assert!(
            !success && text.contains(shows) && text.lines().count() == 1,
            "{arguments:?}: {text}"
        );
    };
    done(&["push", "mine", folder, "--new"], "mine ");
    refused(&["push", "mine", folder, "--new"], "412: the active version is v1");
    refused(&["push", "mine", folder, "--if-active", "7"], "precondition_failed");
    refused(&["push", "mine", "/nowhere"], "/nowhere/adapter_config.json");
    refused(&["push", "a b", folder], "invalid_adapter_name");
    refused(
        &["push", "bad", fixtures().join("bad/nan-weights").to_str().unwrap()],
        "non_finite_weight",
    );
    let german = shipped_adapters().join("german");
    done(&["push", "mine", german.to_str().unwrap(), "--no-activate"], "inactive");
    done(&["activate", "mine", "2"], "v2");
    refused(&["activate", "mine", "3"], "no version 3");
    done(&["pin", "mine"], "pinned");
    assert!(!done(&["unpin", "mine"], "v2").contains("pinned"));
    done(&["prefetch", "mine"], "host");
    done(&["validate", "mine", "1"], "mine ");
    assert_eq!(done(&["show", "mine"], "inactive").lines().count(), 3);
    assert_eq!(done(&["list"], "sentiment").lines().count(), 9);
    let listed: Value = serde_json::from_str(&done(&["list", "--json"], "mine")).unwrap();
    assert_eq!(listed["data"].as_array().unwrap().len(), 9);
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    done(&["get", "mine", copy.to_str().unwrap(), "--version", "1"], "copy");
    assert!(files(&copy) == files(Path::new(folder)));
    done(&["get", "mine", copy.to_str().unwrap(), "--version", "1"], "copy");
    refused(&["get", "mine", copy.to_str().unwrap()], "with other bytes");
    assert!(files(&copy) == files(Path::new(folder)));
    assert_eq!(copy.read_dir().unwrap().count(), 2, "nothing is left of what was refused");
    let none = out.path().join("none");
    refused(&["get", "nobody", none.to_str().unwrap()], "404");
    assert!(!none.exists());
    refused(&["rm", "mine", "--version", "2"], "version_in_use");
    done(&["rm", "mine", "--version", "1"], "mine@v1 is deleted");
    done(&["rm", "mine"], "mine is deleted");
    refused(&["show", "mine"], "404");
    refused(&["rm", "mine"], "model_not_found");
}
