use std::fs;
use std::path::Path;

use dsv2_foreign::Place;

use super::{check, replace};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn set(content: &str) -> [(&'static str, String); 2] {
    ["a", "b"].map(|name| (name, content.to_owned()))
}

fn contents(dir: &Path) -> Vec<String> {
    ["a", "b"].map(|name| fs::read_to_string(dir.join(name)).unwrap()).into()
}

#[test]
fn a_set_of_files_takes_the_place_of_an_earlier_one_wherever_it_lies() {
    let room = tempfile::tempdir().unwrap();
    // New with the folders above it, empty, an earlier set, a set among other things, a link
    let places = ["x/y/new", "empty", "earlier", "among", "link"].map(|name| room.path().join(name));
    for place in &places[1..4] {
        fs::create_dir(place).unwrap();
    }
    replace(&places[2], &set("old")).unwrap();
    fs::write(places[3].join("other"), "other").unwrap();
    std::os::unix::fs::symlink("earlier", &places[4]).unwrap();
    for (place, others) in places.iter().zip([&[][..], &[], &[], &["other"], &[]]) {
        for content in ["one", "two"] {
            check(place).unwrap();
            replace(place, &set(content)).unwrap();
            assert_eq!(contents(place), [content; 2]);
            assert_eq!(names(place), [&["a", "b"], others].concat());
        }
    }
    assert!(fs::symlink_metadata(&places[4]).unwrap().is_symlink());
    assert_eq!(names(room.path()), ["among", "earlier", "empty", "link", "x"]);
}

/// A name that is a folder cannot be replaced by a file; nothing of the set may be there then, or all of the earlier one.
#[test]
fn a_set_that_cannot_be_written_leaves_the_earlier_one() {
    let room = tempfile::tempdir().unwrap();
    let [below_a_file, new] = ["file/report", "x/y/new"].map(|name| room.path().join(name));
    fs::write(room.path().join("file"), "").unwrap();
    assert!(check(&below_a_file).is_err());
    assert!(replace(&below_a_file, &set("one")).is_err());
    let long = "x".repeat(300);
    let unwritable = [("a", String::new()), (&*long, String::new())];
    let refused = replace(&new, &unwritable).unwrap_err().to_string();
    assert!(refused.contains("x/y/new/xxx") && refused.contains("cannot write"), "{refused}");
    assert_eq!(names(room.path()), ["file"]);

    replace(&new, &set("one")).unwrap();
    assert!(replace(&new, &unwritable).is_err());
    assert_eq!((names(&new), contents(&new)), (vec!["a".to_owned(), "b".to_owned()], vec!["one".to_owned(); 2]));
}

#[test]
fn what_can_never_be_a_folder_is_refused_before_the_work() {
    let room = tempfile::tempdir().unwrap();
    fs::write(room.path().join("file"), "").unwrap();
    for (name, why) in [
        ("file".to_owned(), "expected a folder to write to, found something else"),
        ("file/below".to_owned(), "cannot write: "),
        ("x".repeat(300), "cannot write: "),
        ("x/".repeat(3) + &"y".repeat(300), "cannot write: "),
        (vec!["y".repeat(200); 30].join("/"), "cannot write: "),
    ] {
        let dir = room.path().join(name);
        let refused = check(&dir).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{}: {why}", Place(&dir))), "{refused}");
    }
    assert_eq!(names(room.path()), ["file"]);
}

/// In place, beside other things, each name has to be taken away first; a set with a folder in it is no exception.
#[test]
fn a_folder_of_a_set_is_replaced_as_a_whole_and_holds_nothing_else() {
    let room = tempfile::tempdir().unwrap();
    let dir = room.path().join("report");
    let set = |plot: &'static str| [("a", plot.to_owned()), (plot, plot.to_owned())];
    for others in [&[][..], &["other"]] {
        for plot in ["plots/one.svg", "plots/two.svg"] {
            replace(&dir, &set(plot)).unwrap();
            assert_eq!(names(&dir), [&["a"], others, &["plots"]].concat());
            assert_eq!(names(&dir.join("plots")), [&plot["plots/".len()..]]);
        }
        fs::write(dir.join("other"), "").unwrap();
    }
    fs::write(dir.join("plots/notes.txt"), "mine").unwrap();
    let refused = replace(&dir, &set("plots/one.svg")).unwrap_err().to_string();
    assert!(
        refused.ends_with("plots: expected a folder of .svg files alone, which is replaced, found `notes.txt`"),
        "{refused}"
    );
    assert_eq!(names(&dir.join("plots")), ["notes.txt", "two.svg"]);
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "plots/two.svg");
    assert_eq!(names(room.path()), ["report"]);
}

/// What stands in the way of the last name is met after the first has been replaced, which is undone.
#[test]
fn renaming_is_undone_if_one_name_cannot_be_had() {
    let room = tempfile::tempdir().unwrap();
    let at = |name: &str| room.path().join(name);
    for name in ["old-a", "new-a", "new-b"] {
        fs::write(at(name), name).unwrap();
    }
    fs::create_dir_all(at("b/full")).unwrap();
    let renames = [("old-a", "aside"), ("new-a", "old-a"), ("new-b", "b")].map(|(from, to)| (at(from), at(to)));
    let refused = super::rename_all(&renames, room.path()).unwrap_err().to_string();
    assert!(refused.contains("cannot replace"), "{refused}");
    assert_eq!(names(room.path()), ["b", "new-a", "new-b", "old-a"]);
    assert_eq!(fs::read_to_string(at("old-a")).unwrap(), "old-a");
}
