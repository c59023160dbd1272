//! The recipes of `docs/recipes.md`, as they stand there.

use super::shares::{USER, give};
use crate::bpf;
use crate::container;
use crate::context::{Check, Context, Finished, check};
use crate::process::{Process, Wiring};
use arch::Isa;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const TEXT: &str = include_str!("../../../docs/recipes.md");
const SELFTESTS: &str = "A kernel's selftests";
const BPF: &str = "A bpf test";
const CONTAINER: &str = "A container";

/// The blocks of a language below a heading.
fn blocks<'a>(heading: &str, language: &str) -> impl Iterator<Item = &'a str> {
    let section = TEXT.split("\n## ").find_map(|section| section.strip_prefix(heading));
    let (open, blocks) =
        (format!("{language}\n"), section.unwrap_or_default().split("```").skip(1).step_by(2));
    blocks.filter_map(move |block| block.strip_prefix(&*open))
}

/// The only one.
fn block(heading: &str, language: &str) -> Result<&'static str, String> {
    let mut blocks = blocks(heading, language);
    match (blocks.next(), blocks.next()) {
        (Some(block), None) => Ok(block),
        _ => Err(format!("'{heading}' has not one block of {language}")),
    }
}

/// What `make install` leaves of selftests, small: a collection with a test that passes, one with a test that fails, and
/// one with a test that is skipped. As the kernel's own runner (Linux 6.12), it tells of them and ends with 0.
const RUN_KSELFTEST: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
for collection in $(cut -d: -f1 kselftest-list.txt | sort -u); do
  tests=$(grep "^$collection:" kselftest-list.txt | cut -d: -f2)
  printf 'TAP version 13\n1..%s\n' "$(echo "$tests" | wc -w)"
  number=0
  for test in $tests; do
    number=$((number + 1))
    name="$number selftests: $collection: $test"
    (cd "$collection" && "./$test" 2>&1) | sed 's/^/# /'
    code=$(cat "/tmp/$test.code")
    case $code in
      0) echo "ok $name" ;;
      4) echo "ok $name # SKIP" ;;
      *) echo "not ok $name # exit=$code" ;;
    esac
  done
done
"#;
const TESTS: [(&str, &str, u8); 3] =
    [("kcmp", "kcmp_test", 0), ("mincore", "mincore_selftest", 1), ("size", "get_size", 4)];

/// What these scripts want of a root.
const APPLETS: [&str; 9] = ["cat", "cut", "dirname", "env", "grep", "sed", "sh", "sort", "wc"];

/// A folder with all that the recipes begin with.
struct Kitchen {
    folder: PathBuf,
}

impl Kitchen {
    fn make(c: &Context) -> io::Result<Kitchen> {
        // A nest has its files in its memory, and this in a file system that is mounted: as a disk of its own is.
        let folder = c.work.join("recipes");
        fs::create_dir_all(folder.join("bin"))?;
        if c.in_nest {
            for applet in APPLETS {
                symlink("busybox", Path::new("/bin").join(applet))?;
            }
        }
        let kitchen = Kitchen { folder };
        kitchen.tree(c)?;
        kitchen.selftests()?;
        let rootfs = kitchen.folder.join("rootfs");
        fs::create_dir_all(&rootfs)?;
        for place in ["bpf_test", "rootfs/bpf_test"] {
            fs::copy(std::env::current_exe()?, kitchen.folder.join(place))?;
        }
        symlink(&c.vmm, kitchen.folder.join("bin/vmm"))?;
        let this = std::env::current_exe()?;
        let words = format!(
            "#!/bin/busybox sh\nexec {} {} {} {USER} \"$@\"\n",
            this.display(),
            container::WORD,
            c.vmm.display()
        );
        kitchen.script("bin/docker", &words)?;
        Ok(kitchen)
    }

    fn script(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.folder.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
    }

    /// A source tree, as far as one is looked at.
    fn tree(&self, c: &Context) -> io::Result<()> {
        let tree = self.folder.join("linux");
        for image in ["arch/x86/boot/bzImage", "arch/arm64/boot/Image"] {
            if image.contains("arm64") == (c.isa == Isa::Aarch64) {
                let image = tree.join(image);
                fs::create_dir_all(image.parent().unwrap_or(&tree))?;
                fs::copy(c.kernel("6.12"), image)?;
            }
        }
        let mut order = String::new();
        for module in fs::read_dir(c.modules())? {
            let module = module?.path();
            let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = name.trim_end_matches(".xz");
            let bytes = match module.extension().is_some_and(|it| it == "xz") {
                true => Command::new("/bin/busybox").args(["xz", "-dc"]).arg(&module).output()?.stdout,
                false => fs::read(&module)?,
            };
            fs::write(tree.join(name), bytes)?;
            order.push_str(&format!("{}.o\n", name.trim_end_matches(".ko")));
        }
        fs::write(tree.join("modules.order"), order)
    }

    fn selftests(&self) -> io::Result<()> {
        self.script("kselftest/run_kselftest.sh", RUN_KSELFTEST)?;
        let mut list = String::new();
        for (collection, test, code) in TESTS {
            list.push_str(&format!("{collection}:{test}\n"));
            let text = format!(
                "#!/bin/sh\necho {code} > /tmp/{test}.code\necho 'not ok 1 {test}, as it says itself'\n"
            );
            self.script(&format!("kselftest/{collection}/{test}"), &text)?;
        }
        fs::write(self.folder.join("kselftest/kselftest-list.txt"), list)
    }

    /// Types a recipe.
    fn cook(&self, c: &mut Context, recipe: &str) -> Result<Finished, String> {
        let mut command = Command::new("/bin/busybox");
        let path = format!("{}:/bin:/usr/bin", self.folder.join("bin").display());
        command.args(["sh", "-c", recipe]).current_dir(&self.folder).env("PATH", path).env_remove("RUST_LOG");
        let mut process =
            Process::start("recipe", command, Wiring::Pipes).map_err(|error| error.to_string())?;
        process.close_input();
        let code = process.wait(c.limit(60));
        c.keep("recipe", &process);
        Ok(Finished { code: code?, output: process.output.text(), errors: process.errors.text() })
    }
}

/// Selftests are run and told of, and a bpf program is loaded and run.
pub fn tests_of_a_kernel(c: &mut Context) -> Check {
    let kitchen =
        Kitchen::make(c).map_err(|error| format!("cannot make what recipes begin with: {error}"))?;
    c.write(&kitchen.folder.join("tests"), block(SELFTESTS, "text")?.as_bytes())?;
    let selftests = kitchen.cook(c, block(SELFTESTS, "sh")?)?;
    selftests.expect_code(1)?;
    selftests.expect_output("(1 test failed; the command ended with code 0)")?;
    selftests.expect_output("0 of 1 run passed")?;
    let xml = fs::read_to_string(kitchen.folder.join("results.xml")).map_err(|error| error.to_string())?;
    for part in ["tests=\"3\"", "failures=\"1\"", "name=\"selftests: mincore: mincore_selftest\">"] {
        check(xml.contains(part), || format!("no {part} in:\n{xml}"))?;
    }
    let bpf = kitchen.cook(c, block(BPF, "sh")?)?;
    bpf.expect_code(0)?;
    check(bpf.output == bpf::PASSED, || format!("{bpf:?}"))
}

/// A guest is booted in a container that has the program and nothing else, by a user without capabilities.
pub fn in_a_container(c: &mut Context) -> Check {
    let kitchen =
        Kitchen::make(c).map_err(|error| format!("cannot make what recipes begin with: {error}"))?;
    give(Path::new("/dev/kvm"), USER).map_err(|error| error.to_string())?;
    let recipe = block(CONTAINER, "sh")?;
    let contained = kitchen.cook(c, recipe)?;
    contained.expect_code(0)?;
    check(contained.output == bpf::PASSED, || format!("{contained:?}"))?;
    let without = kitchen.cook(c, &recipe.replace("--device /dev/kvm ", ""))?;
    without.expect_code(125)?;
    without.expect_one_line("a container needs --device /dev/kvm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use yaml_rust2::{Yaml, YamlLoader};

    const CI: &str = "A CI job";
    const MACHINES: &str = "Many machines: Kubernetes";

    fn files(heading: &str) -> Vec<Yaml> {
        blocks(heading, "yaml").flat_map(|text| YamlLoader::load_from_str(text).unwrap()).collect()
    }

    /// The lines of a shell; they have to be some.
    fn shell(value: &Yaml) -> &str {
        let text = value.as_str().unwrap();
        let parsed = Command::new("sh").args(["-n", "-c", text]).output().unwrap();
        assert!(parsed.status.success(), "{text}: {parsed:?}");
        text.trim()
    }

    #[test]
    fn jobs_of_ci_type_what_the_recipe_does() {
        let [github, gitlab] = &files(CI)[..] else { panic!("there are not two files") };
        let recipe = block(SELFTESTS, "sh").unwrap().trim();
        let list = block(SELFTESTS, "text").unwrap();
        let steps = github["jobs"]["selftests"]["steps"].as_vec().unwrap();
        let run = |name: &str| {
            shell(&steps.iter().find(|step| step["name"].as_str() == Some(name)).unwrap()["run"])
        };
        assert_eq!(run("Test"), recipe);
        assert!(run("vmm").ends_with("vmm check"));
        assert!(run("KVM").contains("udevadm trigger --name-match=kvm"));
        // The list is what the recipe has, and so are the selftests.
        let line = list.lines().find(|line| !line.starts_with('#')).unwrap();
        assert!(run("Build").contains(&format!("echo '{line}' > tests")), "{}", run("Build"));
        let install = blocks(SELFTESTS, "console")
            .find_map(|block| block.lines().find(|line| line.contains(" install INSTALL_PATH")));
        assert!(run("Build").contains(install.unwrap().trim_start_matches("$ ")));
        let script: Vec<&str> = gitlab["selftests"]["script"].as_vec().unwrap().iter().map(shell).collect();
        assert_eq!(script, ["vmm check", recipe]);
        assert_eq!(gitlab["selftests"]["artifacts"]["reports"]["junit"].as_str(), Some("results.xml"));
    }

    #[test]
    fn a_pod_runs_the_containers_words_without_privileges() {
        let [job] = &files(MACHINES)[..] else { panic!("there is not one file") };
        let pod = &job["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let words: Vec<&str> =
            container["args"].as_vec().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        let recipe = block(CONTAINER, "sh").unwrap();
        let (_, typed) = recipe.trim().split_once(" vmm ").unwrap();
        assert_eq!(words, typed.split(' ').collect::<Vec<_>>());
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"].as_bool(), Some(false));
        assert_eq!(context["readOnlyRootFilesystem"].as_bool(), Some(true));
        assert_eq!(context["capabilities"]["drop"][0].as_str(), Some("ALL"));
        assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
        assert_eq!(container["resources"]["limits"]["devices.kubevirt.io/kvm"].as_str(), Some("1"));
    }

    #[test]
    fn what_the_document_shows_is_what_the_tests_print() {
        assert!(blocks(BPF, "console").any(|shown| shown == bpf::PASSED));
        assert_eq!(blocks(SELFTESTS, "sh").count(), 1);
        assert_eq!(blocks("No such heading", "sh").count(), 0);
    }
}
