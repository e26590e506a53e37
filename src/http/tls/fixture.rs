//! Certificates for tests.

use std::{fs, path::Path};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

use super::TlsFiles;

/// A certificate for `localhost` that signs itself, and its key, in files.
pub(in crate::http) struct Issued {
    folder: TempDir,
    /// What a client must trust.
    pub(in crate::http) certificate: CertificateDer<'static>,
}

impl Issued {
    pub(in crate::http) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = issue(folder.path());
        Self { folder, certificate }
    }

    pub(in crate::http) fn files(&self) -> TlsFiles {
        files(self.folder.path())
    }

    /// Another certificate in the same files.
    pub(in crate::http) fn renew(&mut self) {
        self.certificate = issue(self.folder.path());
    }
}

fn files(folder: &Path) -> TlsFiles {
    TlsFiles { certificate: folder.join("tls.crt"), key: folder.join("tls.key") }
}

fn issue(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let TlsFiles { certificate, key } = files(folder);
    fs::write(certificate, cert.pem()).unwrap();
    fs::write(key, signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}
