//! What a job's guest begins with: kernel, modules, initramfs, command line and devices, from what was asked for.

use super::beside;
use super::initramfs::Initramfs;
use super::loading;
use super::modules::{ModuleError, Modules};
use super::protocol;
use super::root_image::{Found, RootImage, RootImageError};
use super::steps::{Init, NotTellable, Steps, flag};
use crate::boot::kernel::Kernel;
use crate::machine::config::{
    ConsoleConfig, DiskConfig, LinkConfig, NetConfig, ShareConfig, VirtioDevice, VirtioTransport,
};
use crate::symbols;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The guest's first process (`guests/init`).
const INIT: &[u8] = include_bytes!(env!("JOB_INIT"));

/// What a job's guest is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The kernel; this host's own where none is named.
    pub kernel: Option<PathBuf>,
    /// A kernel's source tree, which has all of it.
    pub build: Option<PathBuf>,
    /// Where the kernel's modules are; found beside the kernel and below `/lib/modules` where nothing is named.
    pub modules: Option<PathBuf>,
    /// The root.
    pub root: Root,
    /// Further disks.
    pub disks: Vec<DiskConfig>,
    /// Folders that are written through to the host's, at the same place in the guest.
    pub writable: Vec<PathBuf>,
    /// A folder that is `/out` in the guest; made if it is not there.
    pub out: Option<PathBuf>,
    /// Where the command runs; what is hidden of the root otherwise is not if it is there.
    pub folder: PathBuf,
    /// Further words for the kernel.
    pub append: Option<String>,
    /// A kernel that has panicked stays as it is, instead of resetting itself.
    pub stays_when_panicked: bool,
    /// The kernel's console is the virtio console's, not the serial port.
    pub has_virtio_console: bool,
    /// How devices are found.
    pub transport: VirtioTransport,
    /// A network.
    pub net: Option<NetConfig>,
    /// A first process of the system's own.
    pub init: Option<Init>,
}

/// What a command sees as its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// A folder of the host's, which stays as it is: what the guest writes is in its memory.
    Folder(PathBuf),
    /// Archives that are unpacked to the guest's memory.
    Archives(Vec<PathBuf>),
    /// A file system in a disk image, which stays as it is, too.
    Image(RootImage),
}

impl Default for Root {
    fn default() -> Root {
        Root::Folder("/".into())
    }
}

/// All that it begins with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Vec<u8>,
    /// Archives behind it.
    pub archives: Vec<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Devices.
    pub devices: Vec<VirtioDevice>,
    /// The file that the kernel was linked to, where it is in its source tree.
    pub symbols: Option<PathBuf>,
}

/// A job that cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No kernel was named, and there is none of this host's.
    #[error("there is no kernel: this host's own, {release}, is not at {places}; name one with --kernel")]
    NoKernel {
        /// Its release.
        release: String,
        /// Where it was looked for.
        places: String,
    },
    /// A source tree that has not been built.
    #[error("--build {tree}: there is no {image}; is the kernel built?")]
    NotBuilt {
        /// The tree.
        tree: PathBuf,
        /// What is missing.
        image: PathBuf,
    },
    /// A module.
    #[error("{0} (--modules names the folder with the kernel's modules, --build its source tree)")]
    Module(#[from] ModuleError),
    /// A path.
    #[error(transparent)]
    Path(#[from] NotTellable),
    /// A folder that the guest is to have.
    #[error("{option} {path}: {source}")]
    Folder {
        /// What names it.
        option: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A disk that the guest could take for its root.
    #[error("--disk {path}: the serial number {ROOT_SERIAL} is the root's own: give it another one")]
    RootSerial {
        /// Its file.
        path: PathBuf,
    },
    /// An image.
    #[error("--root {path}: {source}")]
    Image {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: RootImageError,
    },
    /// It cannot be told to the guest.
    #[error("{0} is not UTF-8, which paths that the guest is told of have to be")]
    NotText(PathBuf),
    /// The archive.
    #[error("cannot make the initramfs: {0}")]
    Archive(io::Error),
}

/// Where the image is in a source tree.
const IMAGES: [&str; 2] = ["arch/x86/boot/bzImage", "arch/arm64/boot/Image"];

fn text(path: &Path) -> Result<&str, PlanError> {
    path.to_str().ok_or_else(|| PlanError::NotText(path.into()))
}

/// The running kernel's release.
fn own_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| String::new(), |it| it.release().to_string_lossy().into_owned())
}

/// Whether an x86 kernel is there as well as it is without unpacking itself, which takes a tenth of its boot and more.
fn is_same_build(image: &Path, unpacked: &Path) -> bool {
    /// The setup code, in which its version is.
    const SETUP: u64 = 65 << 10;
    let head = || {
        let mut head = Vec::new();
        File::open(image)?.take(SETUP).read_to_end(&mut head)?;
        Ok::<_, io::Error>(head)
    };
    let Ok(head) = head() else { return false };
    let Some(version) = arch::image::bzimage::version(&head) else { return false };
    // One that a compiler is just writing is none.
    Kernel::open(unpacked, arch::Isa::X86_64, 1 << 30).is_ok_and(|kernel| kernel.is_unpacked(version))
}

/// The kernel's file, and its release as far as its name says.
fn kernel(wanted: &Wanted, image: &str) -> Result<(PathBuf, Option<String>), PlanError> {
    if let Some(tree) = &wanted.build {
        let image = tree.join(image);
        if !image.is_file() {
            return Err(PlanError::NotBuilt { tree: tree.clone(), image });
        }
        let unpacked = tree.join("vmlinux");
        let wants_slide =
            wanted.append.iter().flat_map(|words| words.split_whitespace()).any(|it| it == "kaslr");
        let is_used = !wants_slide && is_same_build(&image, &unpacked);
        return Ok((if is_used { unpacked } else { image }, None));
    }
    if let Some(kernel) = &wanted.kernel {
        let name = kernel.file_name().unwrap_or_default().to_string_lossy();
        let beside = kernel.parent().and_then(|folder| fs::read_to_string(folder.join("release")).ok());
        let release = name.split_once('-').map(|(_, release)| release.to_string());
        return Ok((kernel.clone(), release.or_else(|| beside.map(|it| it.trim().to_string()))));
    }
    let release = own_release();
    let places = [format!("/boot/vmlinuz-{release}"), format!("/lib/modules/{release}/vmlinuz")];
    match places.iter().find(|place| Path::new(place).is_file()) {
        Some(place) => Ok((place.into(), Some(release))),
        None => Err(PlanError::NoKernel { places: places.join(" or "), release }),
    }
}

/// The kernel's modules, and where they are.
fn modules(wanted: &Wanted, kernel: &Path, release: Option<&str>) -> Result<(Modules, PathBuf), PlanError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| PlanError::Folder { option: "modules", path, source }
    };
    if let Some(tree) = &wanted.build {
        return Ok((Modules::of_tree(tree).map_err(failed(tree))?, tree.clone()));
    }
    if let Some(folder) = &wanted.modules {
        fs::read_dir(folder).map_err(|source| PlanError::Folder {
            option: "--modules",
            path: folder.clone(),
            source,
        })?;
        return Ok((Modules::below(folder).map_err(failed(folder))?, folder.clone()));
    }
    let beside = kernel.parent().unwrap_or(Path::new("/"));
    let release = release.unwrap_or("none");
    let places = [
        beside.join("lib/modules").join(release),
        beside.join("../lib/modules").join(release),
        beside.join("modules"),
        Path::new("/lib/modules").join(release),
    ];
    for place in places.iter().filter(|place| place.is_dir()) {
        let modules = Modules::below(place).map_err(failed(place))?;
        if !modules.is_empty() {
            return Ok((modules, place.clone()));
        }
    }
    Ok((Modules::default(), places[3].clone()))
}

/// A folder as it is, without links.
fn real(option: &'static str, path: &Path) -> Result<PathBuf, PlanError> {
    let failed = |source| PlanError::Folder { option, path: path.into(), source };
    let real = fs::canonicalize(path).map_err(failed)?;
    match real.is_dir() {
        true => Ok(real),
        false => Err(failed(io::ErrorKind::NotADirectory.into())),
    }
}

/// Tags of shares.
const ROOT_TAG: &str = "root";
const BESIDE_TAG: &str = "beside";
/// Serial number of the root's disk, and where the first process has a link to it.
const ROOT_SERIAL: &str = "vmm-root";
const ROOT_DISK: &str = "/dev/vmm-root";

fn writable_tag(index: usize) -> String {
    format!("rw{index}")
}

/// Where what a command leaves behind goes.
const OUT: &str = "/out";

/// A folder of the host's that the guest writes to, and where it has it.
struct WrittenThrough {
    folder: PathBuf,
    place: PathBuf,
}

/// What a root of the host's own has that is nobody's business.
const PRIVATE: [&str; 4] = ["/root", "/home", "/mnt", "/media"];

impl Wanted {
    /// All that the guest begins with.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan(&self, isa: arch::Isa) -> Result<Plan, PlanError> {
        let image = IMAGES[usize::from(isa == arch::Isa::Aarch64)];
        let (kernel, release) = kernel(self, image)?;
        let transport = match self.transport {
            VirtioTransport::Pci => "virtio_pci",
            VirtioTransport::Mmio => "virtio_mmio",
        };
        let mut wanted = vec![transport, "virtio_console"];
        let console =
            ConsoleConfig { is_console: self.has_virtio_console, ports: vec![protocol::PORT.into()] };
        let mut devices = vec![VirtioDevice::Console(console), VirtioDevice::Entropy];
        let mut archives = Vec::new();
        let source = match &self.root {
            Root::Folder(folder) => {
                wanted.extend(["virtiofs", "overlay"]);
                let folder = real("--root", folder)?;
                devices.push(share(folder, ROOT_TAG, false));
                Source::Below { kind: "virtiofs", source: ROOT_TAG }
            }
            Root::Archives(files) => {
                archives.clone_from(files);
                Source::Memory
            }
            Root::Image(image) => {
                let found = image.find();
                let found =
                    found.map_err(|source| PlanError::Image { path: image.disk.path.clone(), source })?;
                wanted.extend(["virtio_blk", found.kind.name()]);
                devices.push(VirtioDevice::Disk(DiskConfig {
                    image: disk::Options { access: disk::Access::Snapshot, ..image.disk.clone() },
                    serial: ROOT_SERIAL.into(),
                }));
                if found.kind.is_read_only() {
                    wanted.push("overlay");
                }
                Source::Disk(found)
            }
        };
        if let Some(disk) = self.disks.iter().find(|disk| disk.serial == ROOT_SERIAL) {
            return Err(PlanError::RootSerial { path: disk.image.path.clone() });
        }
        devices.extend(self.disks.iter().cloned().map(VirtioDevice::Disk));
        if !self.disks.is_empty() {
            wanted.push("virtio_blk");
        }
        let writable = self.written_through()?;
        if !writable.is_empty() {
            wanted.push("virtiofs");
        }
        for (index, it) in writable.iter().enumerate() {
            devices.push(share(it.folder.clone(), &writable_tag(index), true));
        }
        if let Some(net) = &self.net {
            wanted.push("virtio_net");
            devices.push(VirtioDevice::Net(net.clone()));
        }
        let beside = self.beside_root(&writable);
        if let Some(folder) = &beside {
            devices.push(share(folder.clone(), BESIDE_TAG, false));
        }
        self.cover(&mut devices, &self.private(&writable));
        let (modules, folder) = modules(self, &kernel, release.as_deref())?;
        let mut archive = Initramfs::default();
        let mut steps = Steps::default();
        let modules = modules.needed(&wanted, &["virtio_rng"], &folder)?;
        self.fill(&mut archive, &mut steps, &modules, (source, beside.as_deref(), &writable))?;
        let panic = if self.stays_when_panicked { 0 } else { -1 };
        let mut cmdline = format!("quiet panic={panic} rdinit=/init");
        if let Some(more) = &self.append {
            cmdline.push(' ');
            cmdline.push_str(more);
        }
        let initramfs = archive.finish().map_err(PlanError::Archive)?;
        // One that a compiler is just writing is as good as none.
        let vmlinux = self.build.as_ref().map(|tree| tree.join("vmlinux"));
        let symbols = vmlinux.filter(|path| symbols::open(path, isa).is_ok());
        Ok(Plan { kernel, initramfs, archives, cmdline, devices, symbols })
    }

    fn written_through(&self) -> Result<Vec<WrittenThrough>, PlanError> {
        let mut all = Vec::new();
        for folder in &self.writable {
            let folder = real("--rw", folder)?;
            if beside::is_guests_own(&folder) {
                let source = io::Error::other(
                    "the guest has its own: name a folder below /, but not in /dev, /proc or /sys",
                );
                return Err(PlanError::Folder { option: "--rw", path: folder, source });
            }
            all.push(WrittenThrough { place: folder.clone(), folder });
        }
        if let Some(out) = &self.out {
            let failed = |source| PlanError::Folder { option: "--out", path: out.clone(), source };
            fs::create_dir_all(out).map_err(failed)?;
            all.push(WrittenThrough { place: OUT.into(), folder: real("--out", out)? });
        }
        Ok(all)
    }

    /// The folder of the host's that the command runs in, or what has it, if the guest has it neither by its root nor
    /// by what it writes through to.
    fn beside_root(&self, writable: &[WrittenThrough]) -> Option<PathBuf> {
        if !self.has_hosts_root() {
            return None;
        }
        let folder = beside::root(&self.folder)?;
        let real = fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let has_it =
            |it: &WrittenThrough| real.starts_with(&it.place) && !beside::is_mounted_apart(&it.folder, &real);
        let is_written_through = writable.iter().any(has_it);
        (!is_written_through).then_some(folder)
    }

    fn fill(
        &self,
        archive: &mut Initramfs,
        steps: &mut Steps,
        modules: &[super::modules::Module],
        (source, beside, writable): (Source, Option<&Path>, &[WrittenThrough]),
    ) -> Result<(), PlanError> {
        let put = |archive: &mut Initramfs, path: &str, bytes: &[u8]| {
            archive.file(path, bytes).map_err(PlanError::Archive)
        };
        for folder in ["dev", "proc", "sys", "vmm", "vmm/modules"] {
            archive.folder(folder).map_err(PlanError::Archive)?;
        }
        put(archive, "init", INIT)?;
        loading::add(modules, archive, steps).map_err(PlanError::Archive)?;
        self.steps(steps, source, beside, writable)?;
        let list = std::mem::take(steps).finish()?;
        put(archive, "vmm/steps", list.as_bytes())
    }

    /// Mounts, and what else makes a system of a kernel.
    fn steps(
        &self,
        steps: &mut Steps,
        source: Source,
        beside: Option<&Path>,
        writable: &[WrittenThrough],
    ) -> Result<(), PlanError> {
        source.mount(steps);
        let new = source.place();
        if !new.is_empty() {
            for (kind, folder) in [("devtmpfs", "dev"), ("proc", "proc"), ("sysfs", "sys")] {
                steps.mount(kind, folder, &format!("{new}/{folder}"), 0, "");
            }
        }
        let at = |path: &str| format!("{new}{path}");
        steps.try_mount("devpts", "devpts", &at("/dev/pts"), 0, "mode=620,ptmxmode=666");
        for (path, options) in [("/dev/shm", "mode=1777"), ("/run", "mode=755"), ("/tmp", "mode=1777")] {
            steps.try_mount("tmpfs", "tmpfs", &at(path), 0, options);
        }
        for (kind, path) in [
            ("cgroup2", "/sys/fs/cgroup"),
            ("debugfs", "/sys/kernel/debug"),
            ("tracefs", "/sys/kernel/tracing"),
            ("bpf", "/sys/fs/bpf"),
            ("configfs", "/sys/kernel/config"),
        ] {
            steps.try_mount(kind, kind, &at(path), 0, "");
        }
        // Before what is written through: the host's own stays as it is.
        if self.has_network_of_its_own() {
            steps.try_file(&at("/etc/resolv.conf"), &format!("nameserver {}", net::RESOLVER));
        }
        // What is above another is mounted before it.
        let is_above = |it: &WrittenThrough| beside.is_some_and(|folder| folder.starts_with(&it.place));
        let write_through = |steps: &mut Steps, is_above_beside: bool| {
            for (index, it) in writable.iter().enumerate().filter(|(_, it)| is_above(it) == is_above_beside) {
                steps.mount("virtiofs", &writable_tag(index), &at(text(&it.place)?), 0, "");
            }
            Ok::<(), PlanError>(())
        };
        write_through(steps, true)?;
        if let Some(folder) = beside {
            layered(steps, ("virtiofs", BESIDE_TAG), "/beside", &at(text(folder)?));
        }
        // What is private may be on a mount of its own that is shared beside the root, but is not what is written through.
        self.hide(writable, steps)?;
        write_through(steps, false)?;
        for (target, link) in [
            ("/proc/self/fd", "/dev/fd"),
            ("/proc/self/fd/0", "/dev/stdin"),
            ("/proc/self/fd/1", "/dev/stdout"),
            ("/proc/self/fd/2", "/dev/stderr"),
        ] {
            steps.try_link(target, &at(link));
        }
        if !new.is_empty() {
            steps.root(new);
        }
        steps.host_name("vmm");
        steps.try_loopback();
        if self.has_network_of_its_own() {
            steps.network(net::GUEST, net::MASK, net::GATEWAY);
        }
        if let Some(init) = &self.init {
            steps.init(init);
        }
        Ok(())
    }

    /// Whether the guest's address is known: on a tap it is the command's business.
    fn has_network_of_its_own(&self) -> bool {
        matches!(&self.net, Some(NetConfig { link: LinkConfig::User(_), .. }))
    }

    /// What is private of the host's own root is empty, but for the folder where the command runs, and for what is written
    /// through.
    fn private(&self, writable: &[WrittenThrough]) -> Vec<PathBuf> {
        if !self.has_hosts_root() {
            return Vec::new();
        }
        let is_named = |place: &PathBuf| writable.iter().any(|it| place.starts_with(&it.place));
        let places = hidden(&PRIVATE.map(Path::new), &self.folder).into_iter();
        places.filter(|place| !is_named(place)).collect()
    }

    /// Whether the root is this host's own.
    fn has_hosts_root(&self) -> bool {
        matches!(&self.root, Root::Folder(folder) if real_path(folder) == Path::new("/"))
    }

    /// It can be written to in the guest, as all of its root.
    fn hide(&self, writable: &[WrittenThrough], steps: &mut Steps) -> Result<(), PlanError> {
        for place in self.private(writable).into_iter().filter(|place| place.is_dir()) {
            steps.mount("tmpfs", "tmpfs", &format!("/new{}", text(&place)?), 0, "mode=755");
        }
        Ok(())
    }

    /// Nothing of it is shared: whoever is root in the guest can look below its mounts.
    fn cover(&self, devices: &mut [VirtioDevice], private: &[PathBuf]) {
        if !self.has_hosts_root() {
            return;
        }
        for device in devices {
            let VirtioDevice::Share(share) = device else { continue };
            if share.is_writable {
                continue;
            }
            let below = private.iter().filter_map(|place| place.strip_prefix(&share.folder).ok());
            share.covered = below.filter(|place| *place != Path::new("")).map(PathBuf::from).collect();
            if share.folder == Path::new("/") {
                // A link there is to something that has a name of its own.
                let own =
                    beside::EMPTY.iter().filter(|place| real_path(Path::new(place)) == Path::new(place));
                share.covered.extend(own.map(|place| PathBuf::from(&place[1..])));
            }
        }
    }
}

/// What of these is hidden from a command that runs in this folder, each where it is without links: what the command is
/// in is not, nor what leads there by a link.
fn hidden(private: &[&Path], folder: &Path) -> Vec<PathBuf> {
    let real_folder = real_path(folder);
    let mut places = Vec::new();
    for private in private {
        let place = real_path(private);
        let is_in = folder.starts_with(private) || real_folder.starts_with(&place);
        if !is_in && !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Where something is without links. What is not there is told of when it is needed.
fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.into())
}

/// Where a root comes from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// It is there already, in the guest's memory.
    Memory,
    /// From what cannot be written to, with a layer in the guest's memory above.
    Below {
        /// The kind of file system.
        kind: &'static str,
        /// What is mounted.
        source: &'static str,
    },
    /// From a disk.
    Disk(Found),
}

impl Source {
    /// Where it is, before it is the root.
    fn place(self) -> &'static str {
        match self {
            Source::Memory => "",
            Source::Below { .. } | Source::Disk(_) => "/new",
        }
    }

    /// Has it there.
    fn mount(self, steps: &mut Steps) {
        match self {
            Source::Memory => {}
            Source::Below { kind, source } => layered(steps, (kind, source), "", self.place()),
            Source::Disk(found) => {
                steps.disk(ROOT_SERIAL, found.partition, ROOT_DISK);
                match found.kind.is_read_only() {
                    true => Source::Below { kind: found.kind.name(), source: ROOT_DISK }.mount(steps),
                    false => steps.mount(found.kind.name(), ROOT_DISK, self.place(), 0, ""),
                }
            }
        }
    }
}

/// Mounts what cannot be written to, below a layer in the guest's memory. Both have folders in `aside`, a path or nothing.
fn layered(steps: &mut Steps, (kind, source): (&str, &str), aside: &str, place: &str) {
    let (lower, over) = (format!("{aside}/lower"), format!("{aside}/over"));
    steps.mount(kind, source, &lower, flag::READ_ONLY, "");
    steps.mount("tmpfs", "tmpfs", &over, 0, "mode=755");
    steps.folder(&format!("{over}/upper"));
    steps.folder(&format!("{over}/work"));
    let layers = format!("lowerdir={lower},upperdir={over}/upper,workdir={over}/work");
    steps.mount("overlay", source, place, 0, &layers);
}

fn share(folder: PathBuf, tag: &str, is_writable: bool) -> VirtioDevice {
    VirtioDevice::Share(ShareConfig { folder, tag: tag.into(), is_writable, covered: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::config::UserNetConfig;

    fn steps(wanted: &Wanted, writable: &[&str]) -> String {
        let writable: Vec<_> =
            writable.iter().map(|it| WrittenThrough { folder: it.into(), place: it.into() }).collect();
        let mut steps = Steps::default();
        let source = Source::Below { kind: "virtiofs", source: ROOT_TAG };
        wanted.steps(&mut steps, source, None, &writable).unwrap();
        steps.finish().unwrap()
    }

    #[test]
    fn a_root_of_the_hosts_stays_as_it_is() {
        let wanted = Wanted { folder: "/root/work".into(), ..Wanted::default() };
        let text = steps(&wanted, &["/root/work"]);
        assert!(text.contains("mount\tvirtiofs\troot\t/lower\t1\t\n"));
        assert!(text.contains("mount\ttmpfs\ttmpfs\t/new/home\t0\tmode=755\n"), "{text}");
        // The command runs there.
        assert!(!text.contains("\t/new/root\t"));
        assert!(text.contains("mount\tvirtiofs\trw0\t/new/root/work\t0\t\n"));
        let (moves, writes) = (text.find("root\t/new\n").unwrap(), text.find("\trw0\t").unwrap());
        assert!(writes < moves);
    }

    #[test]
    fn where_the_command_runs_is_there() {
        let folder = fs::canonicalize(std::env::temp_dir()).unwrap();
        let folder = folder.join(format!("vmm-beside-root-{}", std::process::id()));
        fs::create_dir_all(folder.join("inner")).unwrap();
        let wanted = Wanted { folder: folder.join("inner"), ..Wanted::default() };
        let through = |place: &str| WrittenThrough { folder: folder.clone(), place: folder.join(place) };
        let beside = [vec![], vec![through("inner")], vec![through("")], vec![through("inner/out")]]
            .map(|writable| wanted.beside_root(&writable));
        let in_another = Wanted { root: Root::Folder("/usr".into()), ..wanted.clone() }.beside_root(&[]);
        fs::remove_dir_all(&folder).unwrap();
        let inner = Some(folder.join("inner"));
        assert_eq!(beside, [inner.clone(), None, None, inner]);
        assert_eq!(in_another, None);

        let mut steps = Steps::default();
        let source = Source::Below { kind: "virtiofs", source: ROOT_TAG };
        let out = WrittenThrough { folder: "/vol/work/out".into(), place: "/vol/work/out".into() };
        wanted.steps(&mut steps, source, Some(Path::new("/vol/work")), &[out]).unwrap();
        let text = steps.finish().unwrap();
        let layer = "mount\toverlay\tbeside\t/new/vol/work\t0\tlowerdir=/beside/lower,";
        let (there, written) = (text.find(layer).unwrap(), text.find("\trw0\t/new/vol/work/out").unwrap());
        // What is private is hidden of both.
        let hidden = text.find("tmpfs\t/new/root\t").unwrap();
        assert!(text.find("\t/new/tmp\t").unwrap() < there && there < hidden && hidden < written, "{text}");

        // A folder that is written through, and has the mount where the command runs.
        let mut steps = Steps::default();
        let above = WrittenThrough { folder: "/vol".into(), place: "/vol".into() };
        wanted.steps(&mut steps, Source::Memory, Some(Path::new("/vol/work")), &[above]).unwrap();
        let text = steps.finish().unwrap();
        let written = text.find("\trw0\t/vol\t").unwrap();
        assert!(written < text.find("mount\toverlay\tbeside\t/vol/work\t").unwrap(), "{text}");
    }

    #[test]
    fn what_is_private_is_not_shared() {
        let covered = |wanted: &Wanted, folder: &str, is_writable: bool| {
            let mut devices = [share(folder.into(), "t", is_writable)];
            wanted.cover(&mut devices, &["/root", "/vol/home", "/vol2/x"].map(PathBuf::from));
            let [VirtioDevice::Share(share)] = devices else { return Vec::new() };
            share.covered
        };
        let wanted = Wanted { folder: "/usr".into(), ..Wanted::default() };
        let paths = |places: &[&str]| places.iter().map(PathBuf::from).collect::<Vec<_>>();
        let root = covered(&wanted, "/", false);
        assert_eq!(root[..3], paths(&["root", "vol/home", "vol2/x"]));
        assert!(root[3..].iter().all(|place| paths(&["run", "tmp"]).contains(place)), "{root:?}");
        assert_eq!(covered(&wanted, "/vol", false), paths(&["home"]));
        assert_eq!(covered(&wanted, "/vol/home", false), paths(&[]));
        assert_eq!(covered(&wanted, "/", true), paths(&[]));
        // By another name of it; and another root.
        let other = |root: &str| Wanted { root: Root::Folder(root.into()), ..wanted.clone() };
        assert_eq!(covered(&other("/usr/.."), "/", false), root);
        assert_eq!(covered(&other("/usr"), "/usr", false), paths(&[]));
        // Where the command runs, and what is written through.
        let private = |folder: &str, through: &str| {
            let through = WrittenThrough { folder: through.into(), place: through.into() };
            let wanted = Wanted { folder: folder.into(), ..Wanted::default() };
            let home = real_path(Path::new("/home"));
            wanted.private(&[through]).contains(&home)
        };
        assert!(private("/usr", "/home/me/out") && !private("/home", "/out") && !private("/usr", "/home"));
    }

    #[test]
    fn a_network_is_there_when_the_command_runs() {
        let mut wanted = Wanted::default();
        assert!(!steps(&wanted, &[]).contains("network"));
        let mac = None;
        wanted.net = Some(NetConfig { link: LinkConfig::User(UserNetConfig::default()), mac });
        let text = steps(&wanted, &["/etc"]);
        assert!(text.contains("network\t10.0.2.15\t255.255.255.0\t10.0.2.2\n"), "{text}");
        let names = text.find("try\tfile\t/new/etc/resolv.conf\tnameserver 10.0.2.3\n").unwrap();
        assert!(names < text.find("\trw0\t/new/etc").unwrap());
        wanted.net = Some(NetConfig { link: LinkConfig::Tap("tap0".into()), mac });
        assert!(!steps(&wanted, &[]).contains("network"));
    }

    #[test]
    fn a_folder_is_nobodys_own_root() {
        let wanted = Wanted { root: Root::Folder("/srv/debian".into()), ..Wanted::default() };
        assert!(!steps(&wanted, &[]).contains("/new/home"));
    }

    #[test]
    fn what_every_guest_has_of_its_own_is_not_written_through() {
        for folder in ["/", "/dev", "/proc/self/fd/..", "/sys/kernel"] {
            let wanted = Wanted { writable: vec![folder.into()], ..Wanted::default() };
            let error = wanted.written_through().err().unwrap().to_string();
            assert!(error.starts_with("--rw /") && error.contains("the guest has its own"), "{error}");
        }
        let wanted = Wanted { writable: vec!["/usr".into()], ..Wanted::default() };
        assert_eq!(wanted.written_through().ok().map(|all| all.len()), Some(1));
    }

    #[test]
    fn what_is_missing_is_named() {
        let wanted = Wanted { build: Some("/nowhere".into()), ..Wanted::default() };
        let error = wanted.plan(arch::Isa::Aarch64).unwrap_err().to_string();
        assert_eq!(
            error,
            "--build /nowhere: there is no /nowhere/arch/arm64/boot/Image; is the kernel built?"
        );
        let wanted = Wanted {
            kernel: Some("/etc/hostname".into()),
            root: Root::Folder("/etc/hostname".into()),
            ..Wanted::default()
        };
        assert!(
            wanted.plan(arch::Isa::X86_64).unwrap_err().to_string().starts_with("--root /etc/hostname: ")
        );
    }

    #[test]
    fn a_folder_that_a_link_leads_to_is_not_hidden() {
        let link = std::env::temp_dir().join(format!("vmm-link-{}", std::process::id()));
        std::os::unix::fs::symlink("/media", &link).unwrap();
        let private = ["/etc", "/media"].map(Path::new);
        let all = ["/usr".as_ref(), link.as_path(), Path::new("/media/not/there")]
            .map(|folder| hidden(&private, folder));
        fs::remove_file(&link).unwrap();
        assert_eq!(all[0], private);
        assert_eq!(all[1], private[..1]);
        assert_eq!(all[2], private[..1]);
    }

    #[test]
    fn what_a_link_leads_to_is_hidden_where_it_is() {
        let top = fs::canonicalize(std::env::temp_dir()).unwrap();
        let top = top.join(format!("vmm-private-{}", std::process::id()));
        let (home, mnt, real) = (top.join("home"), top.join("mnt"), top.join("var/home"));
        fs::create_dir_all(real.join("user")).unwrap();
        std::os::unix::fs::symlink("var/home", &home).unwrap();
        std::os::unix::fs::symlink(&real, &mnt).unwrap();
        let private = [&*home, &*mnt];
        let elsewhere = hidden(&private, Path::new("/"));
        let within = [home.join("user"), real.join("user"), mnt.clone()].map(|it| hidden(&private, &it));
        fs::remove_dir_all(&top).unwrap();
        // Once, and not at the link, which would lead out of the root that is being made.
        assert_eq!(elsewhere, [real]);
        assert!(within.iter().all(Vec::is_empty), "{within:?}");
    }

    #[test]
    fn the_roots_serial_number_is_its_own() {
        let image = disk::Options { path: "/disk".into(), format: None, access: disk::Access::Snapshot };
        let disk = DiskConfig { image, serial: ROOT_SERIAL.into() };
        let kernel = Some("/etc/hostname".into());
        let wanted = Wanted { kernel, disks: vec![disk], ..Wanted::default() };
        let error = wanted.plan(arch::Isa::X86_64).unwrap_err().to_string();
        assert_eq!(error, "--disk /disk: the serial number vmm-root is the root's own: give it another one");
    }
}
