//! What `nbdcopy` puts into a volume comes out again, byte for byte, also after a clean restart.

use quarry_tests::rng::Rng;
use quarry_tests::*;
use std::io::Write;
use std::time::Duration;

const MIB: usize = 1 << 20;
const SIZE_MIB: usize = 96;

#[test]
fn a_volume_copied_in_and_out_is_identical() -> Res<()> {
    let name = "a_volume_copied_in_and_out_is_identical";
    if let Some(why) = need_programs(&["nbdcopy", "sha256sum"]) {
        skip(name, &why);
        return Ok(());
    }
    let files = Scratch::in_memory()?;
    let (input, output) = (files.file("in"), files.file("out"));
    random_image(&input)?;
    let wanted = sha256(&input)?;
    with_cluster(ClusterOptions::default(), |cluster| {
        let uri = cluster.new_volume("copy", &format!("{SIZE_MIB}MiB"), "sdc1")?;
        nbdcopy(&input, uri.as_str())?;
        nbdcopy(uri.as_str(), &output)?;
        ensure!(sha256(&output)? == wanted, "the copy differs from what was put in");
        // Over it again: overwriting is not the same path as first writing.
        nbdcopy(&input, uri.as_str())?;
        cluster.down()?;
        cluster.up_again()?;
        let uri = cluster.map("copy", "sdc1")?;
        std::fs::remove_file(&output)?;
        nbdcopy(uri.as_str(), &output)?;
        ensure!(sha256(&output)? == wanted, "the copy differs after a restart");
        cluster.wait_health("ok", Duration::from_secs(30))?;
        cluster.expect_all_running()
    })
}

/// Random data with runs of zeroes, whole and partial extents among them.
fn random_image(path: &str) -> Res<()> {
    let mut rng = Rng::new(42);
    let mut file = std::fs::File::create(path)?;
    let mut mib = vec![0u8; MIB];
    for n in 0..SIZE_MIB {
        mib.fill(0);
        let from = if n % 5 == 4 { MIB } else { rng.below(8) as usize * 12_345 };
        for word in mib[from..].chunks_mut(8) {
            word.copy_from_slice(&rng.next_u64().to_le_bytes()[..word.len()]);
        }
        file.write_all(&mib)?;
    }
    Ok(())
}

fn nbdcopy(from: &str, to: &str) -> Res<()> {
    Command::new("nbdcopy")
        .args(["--flush", from, to])
        .limit(Duration::from_secs(120))
        .ok()
        .map(drop)
}

fn sha256(path: &str) -> Res<String> {
    let out = Command::new("sha256sum").args([path]).ok()?;
    Ok(out.stdout.split(' ').next().unwrap_or_default().to_string())
}
