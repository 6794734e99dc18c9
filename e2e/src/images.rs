//! The images that beds use, and the product's own (IO).

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use crate::{
    Image, Result,
    error::Named,
    process,
    programs::{self, cache_root, hex, timed},
};

const BUSYBOX: &str = "/bin/busybox";

/// What kubelet runs in each pod to hold its namespaces.
pub fn pause() -> Image {
    Image::new("bed.local/pause:1").file(BUSYBOX, "/bin/busybox").entrypoint(&[
        "/bin/busybox",
        "sleep",
        "infinity",
    ])
}

/// A shell with the usual commands.
pub fn shell() -> Result<Image> {
    Ok(with_shell(Image::new("docker.io/library/busybox:latest"))?.command(&["sh"]))
}

/// The cluster's DNS.
pub fn coredns() -> Result<Image> {
    Ok(Image::new("registry.k8s.io/coredns/coredns:v1.14.1")
        .file(programs::file("coredns")?, "/coredns")
        .entrypoint(&["/coredns"]))
}

/// Kubernetes' server and client for tests.
pub fn agnhost() -> Result<Image> {
    let image = Image::new("registry.k8s.io/e2e-test-images/agnhost:2.63.0")
        .file(programs::file("agnhost")?, "/agnhost");
    Ok(with_shell(image)?.entrypoint(&["/agnhost"]).command(&["pause"]))
}

/// Debian's redis-server and redis-cli, and a shell.
pub fn redis() -> Result<Image> {
    let image = Image::new("docker.io/library/redis:alpine")
        .file("/usr/bin/redis-server", "/usr/bin/redis-server")
        .file("/usr/bin/redis-cli", "/usr/bin/redis-cli");
    Ok(with_shell(image)?.command(&["redis-server", "--protected-mode", "no"]))
}

fn with_shell(image: Image) -> Result<Image> {
    let applets = process::output(Command::new(BUSYBOX).arg("--list"))?;
    let linked = applets.lines().filter(|applet| *applet != "busybox");
    Ok(linked.fold(image.file(BUSYBOX, "/bin/busybox"), |image, applet| {
        image.link(format!("/bin/{applet}"), "/bin/busybox")
    }))
}

/// The images of Durward.
const PARTS: [&str; 2] = ["controller", "enforcer"];

/// Builds Durward's two images from their Dockerfiles; gives their archives. From the cache if they were made before of the
/// same sources, be it in another checkout.
pub fn durward() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = cache_root()?.join("images");
    fs::create_dir_all(&folder).at("creating", &folder)?;
    let key = sources(&root)?;
    let archives = PARTS.map(|part| folder.join(format!("durward-{part}-{key}.tar")));
    if !archives.iter().all(|archive| archive.exists()) {
        let built = timed("building Durward's release binaries", || release_build(&root))?;
        for (part, archive) in PARTS.iter().zip(&archives) {
            timed(&format!("building the image durward/{part}:dev"), || {
                buildah(
                    &root.join(part).join("Dockerfile"),
                    &built.join(format!("durward-{part}")),
                    part,
                    archive,
                )
            })?;
        }
    }
    Ok(archives.into())
}

/// Names everything that the images are made of.
fn sources(root: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(process::output(Command::new("rustc").arg("-vV"))?);
    let mut paths: Vec<_> = ["Cargo.lock", "Cargo.toml", "bpf", "controller", "crds", "enforcer", "proto"]
        .map(PathBuf::from)
        .into();
    while let Some(path) = paths.pop() {
        let file = root.join(&path);
        if file.is_dir() {
            let entries = fs::read_dir(&file).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let mut names: Vec<_> =
                entries.at("reading", &file)?.iter().map(fs::DirEntry::file_name).collect();
            names.sort();
            paths.extend(names.iter().map(|name| path.join(name)));
        } else {
            let content = fs::read(&file).at("reading", &file)?;
            hash.update(format!("{} {} ", path.display(), content.len()));
            hash.update(content);
        }
    }
    Ok(hex(&hash.finalize())[..20].to_owned())
}

/// Static binaries; gives the folder that they are in.
fn release_build(root: &Path) -> Result<PathBuf> {
    let target: PathBuf = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Ok(cache_root()?.join("target")), |dir| Ok(dir.into()))?;
    let target = root.join(target);
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--release", "--locked", "--target", &triple]);
    process::output(cargo.args(["-p", "durward-controller", "-p", "durward-enforcer"]))?;
    Ok(target.join(triple).join("release"))
}

/// The build sees nothing but the binary. Buildah's own storage is temporary.
fn buildah(dockerfile: &Path, binary: &Path, part: &str, archive: &Path) -> Result<()> {
    let work = tempfile::tempdir().named("making a temporary folder")?;
    let context = work.path().join("context");
    fs::create_dir(&context).at("creating", &context)?;
    let name = format!("durward-{part}");
    fs::copy(binary, context.join(&name)).at("copying", binary)?;
    let image = format!("docker.io/durward/{part}:dev");
    let buildah = || {
        let mut buildah = Command::new("buildah");
        buildah.args(["--storage-driver", "vfs"]);
        buildah.arg("--root").arg(work.path().join("root")).arg("--runroot").arg(work.path().join("run"));
        buildah
    };
    let mut build = buildah();
    build.args(["bud", "--isolation", "chroot", "--tag", &image, "--file"]).arg(dockerfile).arg(&context);
    process::output(&mut build)?;
    let partial = work.path().join("image.tar");
    process::output(
        buildah().args(["push", &image]).arg(format!("docker-archive:{}:{image}", partial.display())),
    )?;
    // Copied first: the temporary folder may be on another file system, where renaming fails. Under a name of its own:
    // others may build the same.
    let folder = archive.parent().unwrap_or(Path::new("."));
    let beside = tempfile::NamedTempFile::new_in(folder).at("writing in", folder)?;
    fs::copy(&partial, beside.path()).at("writing", beside.path())?;
    beside.persist(archive).map_err(|error| error.error).at("writing", archive).map(drop)
}
