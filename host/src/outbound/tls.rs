//! TLS of outbound connections: whom it trusts. Makes no connection.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, WantsVerifier, client::WantsClientCert,
};

/// Those that browsers trust, and the system's: a private CA is installed there, or named by
/// `SSL_CERT_FILE` or `SSL_CERT_DIR`.
pub(crate) fn public_roots() -> RootCertStore {
    let mut roots = system_roots();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots
}

/// Certificates that cannot be read are left out, as in other programs.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Verifies the chain and the name.
pub(crate) fn verifying(roots: RootCertStore) -> Result<ClientConfig> {
    Ok(builder()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// What a server's certificate must be.
pub(crate) enum Trust {
    /// Anything: the connection is encrypted, with whomever.
    Anyone,
    /// Signed by one of these.
    Signed(Roots),
    /// Signed by one of these, for the name that was connected to.
    Named(Roots),
}

/// Where trust begins.
pub(crate) struct Roots {
    store: RootCertStore,
    /// A server's own certificate, given as the root, is trusted even if it calls itself a CA.
    given: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// The certificates of a PEM file.
    pub(crate) fn of(file: &Path) -> Result<Self> {
        let given = certificates(file)?;
        let mut store = RootCertStore::empty();
        for certificate in &given {
            store
                .add(certificate.clone())
                .with_context(|| format!("{} has a certificate that is wrong", file.display()))?;
        }
        Ok(Self { store, given })
    }
}

impl From<RootCertStore> for Roots {
    fn from(store: RootCertStore) -> Self {
        Self {
            store,
            given: Vec::new(),
        }
    }
}

/// A client's own certificate and its key, each in a PEM file.
pub(crate) type Identity<'a> = (&'a Path, &'a Path);

/// TLS that trusts as told.
pub(crate) fn trusting(trust: Trust, identity: Option<Identity<'_>>) -> Result<ClientConfig> {
    let builder = match trust {
        Trust::Anyone => custom(None)?,
        Trust::Signed(roots) => custom(Some((roots, false)))?,
        Trust::Named(roots) => custom(Some((roots, true)))?,
    };
    let Some((certificate, key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let private = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read the private key {}", key.display()))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, private)
        .with_context(|| format!("cannot use the certificate {}", certificate.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = file.display();
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read the certificate file {shown}"))?;
    ensure!(!certificates.is_empty(), "{shown} has no certificate");
    Ok(certificates)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")
}

fn custom(roots: Option<(Roots, bool)>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(ring::default_provider());
    let chain = match roots {
        None => None,
        Some((Roots { store, given }, names)) => {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
                    .build()
                    .context("there is no certificate to trust")?;
            Some(Chain {
                verifier,
                given,
                names,
            })
        }
    };
    Ok(builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chain, provider })))
}

/// Verifies as much as `sslmode` says.
#[derive(Debug)]
struct Verifier {
    /// `None` trusts anyone.
    chain: Option<Chain>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Chain {
    verifier: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
    names: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            chain
                .verifier
                .verify_server_cert(certificate, intermediates, name, ocsp, now);
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !chain.names => Ok(ServerCertVerified::assertion()),
            // A CA's certificate is none of a server, says WebPKI, after it has checked the dates.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if chain.given.iter().any(|given| given == certificate) =>
            {
                if chain.names {
                    let certificate = ParsedCertificate::try_from(certificate)?;
                    rustls::client::verify_server_name(&certificate, name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match &self.chain {
            // It would prove a key that anyone can have made, and refuses old forms of certificates.
            None => Ok(HandshakeSignatureValid::assertion()),
            Some(chain) => chain
                .verifier
                .verify_tls12_signature(message, certificate, signed),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match &self.chain {
            None => Ok(HandshakeSignatureValid::assertion()),
            Some(chain) => chain
                .verifier
                .verify_tls13_signature(message, certificate, signed),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    /// Whether a server with this certificate, which is the only root too, is trusted as `db`.
    fn trusted(certificate: CertificateParams, names: bool) -> Result<bool> {
        let certificate = certificate.self_signed(&KeyPair::generate()?)?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), certificate.pem())?;
        let Roots { store, given } = Roots::of(file.path())?;
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        let chain = Some(Chain {
            verifier: verifier.build()?,
            given,
            names,
        });
        let verified = Verifier { chain, provider }.verify_server_cert(
            certificate.der(),
            &[],
            &ServerName::try_from("db")?,
            &[],
            UnixTime::now(),
        );
        Ok(verified.is_ok())
    }

    #[test]
    fn a_servers_own_certificate_can_be_the_root() -> Result<()> {
        for ca in [
            IsCa::NoCa,
            IsCa::ExplicitNoCa,
            IsCa::Ca(BasicConstraints::Unconstrained),
        ] {
            let certificate = |name: &str| -> Result<_> {
                let mut certificate = CertificateParams::new([name.to_owned()])?;
                certificate.is_ca = ca;
                Ok(certificate)
            };
            assert!(trusted(certificate("db")?, true)?, "{ca:?}");
            assert!(trusted(certificate("other")?, false)?, "{ca:?}");
            assert!(!trusted(certificate("other")?, true)?, "{ca:?}");
            let mut expired = certificate("db")?;
            expired.not_after = date_time_ymd(2020, 1, 1);
            assert!(!trusted(expired, false)?, "{ca:?}");
        }
        Ok(())
    }
}
