//! Where a target is, whatever the image's links say.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use secrun_agent::volumes::{place, resolve, Place};

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("secrun-volumes-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        for (link, target) in [
            ("absolute", "/etc"),
            ("up", "../../../../var/x"),
            ("loop", "loop"),
            ("kernel", "/proc/self/root"),
            ("devices", "dev"),
            ("root", "/../.."),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        fs::write(root.join("file"), "").unwrap();
        Tree(root)
    }

    fn at(&self, path: &str) -> String {
        resolve(&self.0, Path::new(path)).map_or_else(|error| error.to_string(), |path| path.display().to_string())
    }

    fn place(&self, source: &str, target: &str) -> Result<(), String> {
        let place = Place { source: self.0.join(source), target: target.into() };
        self::place(&self.0, &[place]).map_err(|error| error.to_string())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn links_lead_to_places_below_the_root() {
    let tree = Tree::new("links");
    assert_eq!(tree.at("/absolute/a/b"), "etc/a/b");
    assert_eq!(tree.at("/up"), "var/x");
    assert_eq!(tree.at("/etc/../../../../x"), "x");
    assert_eq!(tree.at("/root"), "");
    assert!(tree.at("/loop/x").contains("symbolic links"));
    assert!(tree.at("/file/x").contains("Not a directory"));
}

#[test]
fn what_is_missing_is_made_and_what_is_there_stays() {
    let tree = Tree::new("made");
    tree.place("etc", "/up/deep/er").unwrap();
    assert!(tree.0.join("var/x/deep/er").is_dir());
    tree.place("file", "/absolute/one").unwrap();
    assert!(tree.0.join("etc/one").is_file());
    tree.place("etc", "/file").unwrap();
    assert!(tree.0.join("file").is_file());
    for target in ["/kernel/x", "/proc", "/sys/a", "/root", "/devices", "/up/../../proc"] {
        let refused = tree.place("etc", target).unwrap_err();
        assert!(refused.contains("needs as it is"), "{target}: {refused}");
    }
    tree.place("etc", "/dev/shm/x").unwrap();
}
