//! Container images from files of this machine, as OCI archives (IO). Nothing is pulled.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Result,
    error::Named,
    programs::{cache_root, hex},
};

/// A container image: files with the libraries that they need, links, and what is run.
#[derive(Clone, Debug, Default)]
pub struct Image {
    names: Vec<String>,
    files: Vec<(PathBuf, String)>,
    links: Vec<(String, String)>,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

impl Image {
    /// An empty image. The name must be in full, as `docker.io/library/redis:alpine`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { names: vec![name.into()], ..Self::default() }
    }

    /// With one more name, so that manifests that mean another image can be used word for word.
    pub fn also(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// With this name instead of those that it has.
    pub fn renamed(self, name: impl Into<String>) -> Self {
        Self { names: vec![name.into()], ..self }
    }

    /// With a file of this machine, and the shared libraries that it needs.
    pub fn file(mut self, from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        self.files.push((from.into(), to.into()));
        self
    }

    /// With a symbolic link.
    pub fn link(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.links.push((from.into(), to.into()));
        self
    }

    /// What always runs.
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|&word| word.into()).collect();
        self
    }

    /// What runs unless a pod's `args` say otherwise.
    pub fn command(mut self, words: &[&str]) -> Self {
        self.command = words.iter().map(|&word| word.into()).collect();
        self
    }

    /// The image as an OCI archive, from the cache if it was made before of the same files.
    pub fn archive(&self) -> Result<PathBuf> {
        let files = self.files_and_libraries()?;
        let folder = cache_root()?.join("images");
        let archive = folder.join(format!("{}.tar", self.key(&files)?));
        if !archive.exists() {
            fs::create_dir_all(&folder).at("creating", &folder)?;
            let mut file = tempfile::NamedTempFile::new_in(&folder).at("writing in", &folder)?;
            self.write(&files, file.as_file_mut()).at("writing", &archive)?;
            // Complete, or not there: several tests may want it at once.
            file.persist(&archive).map_err(|error| error.error).at("writing", &archive)?;
        }
        Ok(archive)
    }

    /// Names what is to be in the archive without reading all of it.
    fn key(&self, files: &[(PathBuf, String)]) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(format!("{self:?}"));
        for (from, to) in files {
            let meta = fs::metadata(from).at("reading", from)?;
            let stamp = (from, to, meta.len(), meta.mode(), meta.mtime(), meta.mtime_nsec());
            hash.update(format!("{stamp:?}"));
        }
        Ok(hex(&hash.finalize())[..20].to_owned())
    }

    fn files_and_libraries(&self) -> Result<Vec<(PathBuf, String)>> {
        let mut all = self.files.clone();
        for (from, _) in &self.files {
            let output = Command::new("ldd").arg(from).output().named("running ldd")?;
            // A static program has none, and ldd says so by failing.
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let paths = text.lines().filter_map(|line| {
                line.split_whitespace().find(|word| word.starts_with('/') && line.contains("(0x"))
            });
            all.extend(paths.map(|path| (PathBuf::from(path), path.to_owned())));
        }
        Ok(all)
    }

    fn write(&self, files: &[(PathBuf, String)], out: &mut fs::File) -> std::io::Result<()> {
        let layer = self.layer(files)?;
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "Cmd": self.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let oci = "application/vnd.oci.image";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": format!("{oci}.manifest.v1+json"),
            "config": blob(&format!("{oci}.config.v1+json"), &config),
            "layers": [blob(&format!("{oci}.layer.v1.tar"), &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let entries = self.names.iter().map(|name| {
            let mut entry = blob(&format!("{oci}.manifest.v1+json"), &manifest);
            entry["annotations"] = json!({"io.containerd.image.name": name});
            entry
        });
        let index = json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()}).to_string();
        let mut archive = tar::Builder::new(out);
        add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        add(&mut archive, "index.json", index.as_bytes(), 0o644)?;
        for content in [&manifest, &config, &layer] {
            add(&mut archive, &format!("blobs/{}", digest(content).replace(':', "/")), content, 0o644)?;
        }
        archive.into_inner()?.flush()
    }

    fn layer(&self, files: &[(PathBuf, String)]) -> std::io::Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut done = BTreeSet::new();
        for (name, mode) in [("tmp", 0o1777), ("etc", 0o755)] {
            let mut header = header(tar::EntryType::Directory, 0, mode);
            layer.append_data(&mut header, name, std::io::empty())?;
        }
        for (from, to) in files {
            if done.insert(to) {
                let mut content = Vec::new();
                let mut file = fs::File::open(from)?;
                file.read_to_end(&mut content)?;
                add(&mut layer, to, &content, file.metadata()?.mode() & 0o777)?;
            }
        }
        for (from, to) in &self.links {
            layer.append_link(&mut header(tar::EntryType::Symlink, 0, 0o777), relative(from), to)?;
        }
        layer.into_inner()
    }
}

fn add<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    let mut header = header(tar::EntryType::Regular, content.len() as u64, mode);
    archive.append_data(&mut header, relative(path), content)
}

fn relative(path: &str) -> &Path {
    Path::new(path.trim_start_matches('/'))
}

/// No owner and no time: the same files give the same image.
fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn blob(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
