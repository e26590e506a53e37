//! TLS for clients: a certificate and its key from two files, which may be renewed while connections go on.
//!
//! Connections keep the certificate that they began with; those that come later get the new one. A pair that cannot be used is
//! refused, and the one before stays.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, TryLockError},
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Chains of certificates are some kilobytes.
const MOST_FILE_BYTES: u64 = 1 << 20;
/// The first byte of a connection that speaks TLS: the type of a record with a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// Where a certificate and its key are, both as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead from it to one that clients trust.
    pub certificate: PathBuf,
    /// Its private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

/// Why there is no certificate to be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}; --tls-cert and --tls-key must name files that this server may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should, as PEM. Nothing of what it does hold is told: it may be the key.
    #[error("{} has no {what} as PEM (-----BEGIN ..): {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file has something between the lines of a certificate that is none.
    #[error("the certificate number {number} of {} cannot be read: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which of those in it, from 1 on.
        number: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The reading before this one has not come to its end.
    #[error("{} or {} is still being read since it was last looked at; does its file system answer?", files.certificate.display(), files.key.display())]
    StillReading {
        /// Both files.
        files: TlsFiles,
    },
    /// The key is another certificate's, or of a kind that is not known.
    #[error("{} and {} cannot be used together: {source}", files.certificate.display(), files.key.display())]
    Unusable {
        /// Both files.
        files: TlsFiles,
        /// Why not.
        source: rustls::Error,
    },
}

/// TLS with the certificate of the day. Clones share it.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    certificate: Arc<Certificate>,
}

/// What is shown to clients.
#[derive(Debug)]
struct Certificate {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    current: RwLock<Pair>,
    /// Held while files are read, so that nothing older is shown than was read last.
    renewing: Mutex<()>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
struct Pair {
    /// SHA-256 of the files.
    sha256: [u8; 32],
    key: Arc<CertifiedKey>,
}

/// What a connection turns out to speak.
#[derive(Debug)]
pub(super) enum Greeting {
    /// TLS, as far as the first byte says.
    Tls,
    /// Something else: most likely HTTP in the clear.
    Plain,
}

impl Tls {
    /// Reads both files.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = RwLock::new(Pair::read(&files, &provider)?);
        let certificate = Arc::new(Certificate {
            files: files.clone(),
            provider: Arc::clone(&provider),
            current,
            renewing: Mutex::default(),
        });
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Certificate>::clone(&certificate);
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]);
        let builder = builder.map_err(|source| TlsError::Unusable { files, source })?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), certificate })
    }

    /// Reads both files again. Whether they hold something else than before, which is then shown to whoever comes; on an error
    /// nothing changes.
    pub fn renew(&self) -> Result<bool, TlsError> {
        let Certificate { files, provider, current, renewing } = &*self.certificate;
        let _alone = match renewing.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
            // Where one file never comes to its end, more readers would only wait for the same.
            Err(TryLockError::WouldBlock) => {
                return Err(TlsError::StillReading { files: files.clone() });
            }
        };
        let read = Pair::read(files, provider)?;
        let mut current = current.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = current.sha256 != read.sha256;
        *current = read;
        Ok(is_new)
    }

    /// What the connection speaks, once its first byte is there.
    pub(super) async fn greeting(stream: &TcpStream) -> io::Result<Greeting> {
        let mut first = [0];
        match stream.peek(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if first == [HANDSHAKE] => Ok(Greeting::Tls),
            _ => Ok(Greeting::Plain),
        }
    }

    /// Agrees with a client on keys.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.key))
    }
}

impl Pair {
    fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let TlsFiles { certificate, key } = files;
        let (chain, secret) = (bytes(certificate)?, bytes(key)?);
        let mut sha256 = Sha256::new();
        for part in [&chain, &secret] {
            sha256.update((part.len() as u64).to_le_bytes());
            sha256.update(part);
        }
        let malformed = |path: &Path, what| {
            let path = path.to_owned();
            move |source: pem::Error| TlsError::Malformed { path, what, why: said(&source) }
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
        let chain = chain.and_then(|chain| {
            if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) }
        });
        let chain = chain.map_err(malformed(certificate, "certificate"))?;
        // Clients refuse all of a chain that has one which they cannot read.
        for (index, der) in chain.iter().enumerate() {
            let (path, number) = (certificate.clone(), index + 1);
            let damaged = |source| TlsError::Damaged { path, number, source };
            ParsedCertificate::try_from(der).map_err(damaged)?;
        }
        let secret = PrivateKeyDer::from_pem_slice(&secret);
        let secret = secret.map_err(malformed(key, "private key"))?;
        let unusable = |source| TlsError::Unusable { files: files.clone(), source };
        let pair = CertifiedKey::from_der(chain, secret, provider).map_err(unusable)?;
        Ok(Self { sha256: sha256.finalize().into(), key: Arc::new(pair) })
    }
}

/// What is wrong with a file, without its words: the error has the line.
fn said(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::NoItemsFound => "there is none in it",
        pem::Error::MissingSectionEnd { .. } => {
            "its last line, -----END .., is missing; are the line breaks gone?"
        }
        pem::Error::IllegalSectionStart { .. } => {
            "its first line has more than -----BEGIN ..; are the line breaks gone?"
        }
        pem::Error::SectionTooLarge => "it is too large",
        pem::Error::Base64Decode(_) => "what is between its first and last line is no base64",
        _ => "it is damaged",
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    // What is no file may never end, or never begin.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("it is no file")));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MOST_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_FILE_BYTES {
        return Err(unreadable(io::Error::other("it is longer than 1 MiB")));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod fixture;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{fixture::Issued, *};

    fn shown(tls: &Tls) -> CertificateDer<'static> {
        tls.certificate.current.read().unwrap().key.cert[0].clone()
    }

    #[test]
    fn a_renewed_pair_is_shown() {
        let mut issued = Issued::new();
        let tls = Tls::open(issued.files()).unwrap();
        assert_eq!(shown(&tls), issued.certificate);
        assert!(!tls.renew().unwrap());
        issued.renew();
        assert_ne!(shown(&tls), issued.certificate);
        assert!(tls.renew().unwrap());
        assert_eq!(shown(&tls), issued.certificate);
    }

    #[test]
    fn a_pair_that_cannot_be_used_leaves_the_one_before() {
        let (issued, other) = (Issued::new(), Issued::new());
        let tls = Tls::open(issued.files()).unwrap();
        let TlsFiles { certificate, key } = issued.files();
        // One file of two that are written one after the other.
        fs::copy(other.files().key, &key).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("tls.crt") && error.contains("cannot be used together"), "{error}");
        fs::write(&key, "no PEM").unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("tls.key has no private key as PEM"), "{error}");
        fs::copy(other.files().key, &key).unwrap();
        let chain = fs::read_to_string(other.files().certificate).unwrap();
        let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(&certificate, chain + rubbish).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("certificate number 2 of") && error.contains("tls.crt"), "{error}");
        fs::write(&certificate, "").unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("tls.crt has no certificate as PEM"), "{error}");
        fs::write(&certificate, vec![b' '; 2 << 20]).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("tls.crt: it is longer than 1 MiB"), "{error}");
        fs::remove_file(&certificate).unwrap();
        let error = tls.renew().unwrap_err().to_string();
        assert!(error.contains("--tls-cert"), "{error}");
        assert_eq!(shown(&tls), issued.certificate);
    }

    #[test]
    fn no_message_has_a_part_of_the_key() {
        let issued = Issued::new();
        let TlsFiles { key, .. } = issued.files();
        let secret = fs::read_to_string(&key).unwrap();
        let line = secret.lines().nth(1).unwrap().to_owned();
        let bytes = format!("{:?}", &line.as_bytes()[..8]);
        let bytes = bytes.trim_matches(['[', ']']);
        let tls = Tls::open(issued.files()).unwrap();
        assert!(!format!("{tls:?}").contains(&line));
        for damaged in [
            secret.replace(&line, &format!("{line}!")),
            secret.replace('\n', ""),
            secret.replace('\n', " "),
            secret.lines().take(2).collect::<Vec<_>>().join("\n"),
            secret.replacen('\n', "", 1),
            secret.replace("-----END", "----END"),
        ] {
            fs::write(&key, damaged).unwrap();
            let error = tls.renew().unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(!told.contains(&line[..8]) && !told.contains(bytes), "{told}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let issued = Issued::new();
        let TlsFiles { key, .. } = issued.files();
        fs::remove_file(&key).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&key).status().unwrap().success());
        let error = Tls::open(issued.files()).unwrap_err().to_string();
        assert!(error.contains("tls.key: it is no file"), "{error}");
    }
}
