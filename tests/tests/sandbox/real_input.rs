//! Real programs on real input: standard output and status equal the host's.
//!
//! `RUNSC_TEST_SIZE_MB` is how much data the text tools get (50 by default, 4 in the emulated machine).

use runsc_tests::{
    host, on_sandboxes,
    platform::{Platform, Program},
    programs,
};

fn size_mb() -> u32 {
    let small = if host::time_scale() > 1 { 4 } else { 50 };
    std::env::var("RUNSC_TEST_SIZE_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(small)
}

/// A shell script, by the shells that must understand it.
fn script(platform: &Platform, shells: &[&str], text: &str) {
    for shell in shells {
        let program = match *shell {
            "busybox" => Program::new(&["busybox", "sh", "-c", text]),
            shell => Program::shell(shell, text),
        };
        platform.same_as_host(&program.env("LC_ALL", "C").limit(240));
    }
}

const SHELLS: &[&str] = &["busybox", "sh", "bash"];

const PIPELINES: &str = r#"
seq 1 2000 | grep 7 | sed 's/7/seven/g' | sort -r | head -n 20
seq 1 50000 | tail -n 3
echo one two three | (read a b; echo "$b/$a")
{ echo b; echo a; echo c; } | sort | tr a-z A-Z
false | true; echo "status $?"
yes | head -n 100000 | wc -l
printf 'x%.0s' 1 2 3 4 5; echo
echo "$(echo nested $(echo deep `echo deeper`))"
seq 1 300 | while read n; do case $n in *99) echo "$n"; esac; done
"#;

const SUBSHELLS: &str = r#"
x=1; (x=2; echo inner $x); echo outer $x
(exit 3); echo "status $?"
f() { local v=$1; [ "$v" -gt 0 ] && f $((v - 1)); echo "f $v"; }; f 5
( cd /usr && pwd ); cd /; pwd
trap 'echo trapped' EXIT
(trap 'echo inner trap' EXIT; exit 4); echo "status $?"
set -- a b c; shift; echo "$# $1 $*"
sh -c 'kill -TERM $$'; echo "status $?"
sh -c 'exit 255'; echo "status $?"
"#;

const HERE_DOCUMENTS: &str = r#"
name=world
cat <<END
hello $name $(echo sub) $((6 * 7))
END
cat <<'END'
no $name here
END
cat <<-END
	tabs go
	END
cat <<A; cat <<B
first
A
second
B
while read -r a b; do echo "$b,$a"; done <<END
1 2
3 4
END
"#;

const JOBS: &str = r#"
sleep 0.2 & a=$!
(sleep 0.1; exit 7) & b=$!
wait $b; echo "b $?"
wait $a; echo "a $?"
for i in 1 2 3 4 5; do (sleep 0.0$i; exit $i) & done; wait; echo all
sleep 30 & kill $!; wait $!; echo "killed $?"
mkfifo /tmp/fifo.$$ && { echo through the fifo > /tmp/fifo.$$ & cat /tmp/fifo.$$; wait; rm /tmp/fifo.$$; }
(trap 'echo got usr1; exit 9' USR1; kill -USR1 $(sh -c 'echo $PPID'); sleep 5) ; echo "status $?"
"#;

const JOB_CONTROL: &str = r#"
set -m
sleep 20 & p=$!
kill -STOP $p; sleep 0.3
jobs | sed 's/[0-9][0-9]* *sleep/sleep/;s/+//'
kill -CONT $p; sleep 0.2; kill $p; wait $p; echo "status $?"
(sleep 0.1; echo in its own group) & wait
"#;

const BASH: &str = r#"
declare -A m=([one]=1 [two]=2); for k in $(printf '%s\n' "${!m[@]}" | sort); do echo "$k=${m[$k]}"; done
a=(x y z); echo "${#a[@]} ${a[1]} ${a[@]:1}"
diff <(seq 1 5) <(seq 2 6); echo "status $?"
read -r first < <(echo from a substitution); echo "$first"
coproc C { read line; echo "co: $line"; }; echo hi >&"${C[1]}"; read -r reply <&"${C[0]}"; echo "$reply"; wait
[[ abc123 =~ ([a-z]+)([0-9]+) ]] && echo "${BASH_REMATCH[2]}"
exec 5<>/tmp/five.$$; echo five >&5; cat /tmp/five.$$; exec 5>&-; rm /tmp/five.$$
set -o pipefail; false | true; echo "status $?"
printf '%05d|%-6s|%x\n' 42 ab 255
"#;

const COREUTILS: &str = r#"
d=$(mktemp -d) && cd $d
seq 1 100 > a; cp a b; cmp a b && echo same; mv b c; ls; wc a c
ln a hard; ln -s a soft; readlink soft; stat -c '%s %h %F %a' a soft; chmod 600 a; stat -c %a a
mkdir -p p/q/r; touch -d 2001-02-03T04:05:06Z p/q/f; stat -c %Y p/q/f; find . | sort; rm -r p; rmdir nothing 2>&1 | sed 's/.*: //'
dd if=/dev/zero of=z bs=1000 count=77 2>/dev/null; stat -c %s z; truncate -s 5 z; od -An -tx1 z
split -l 30 a part; ls part*; cat part* | md5sum; paste -d, a c | head -n 2; join a c | tail -n 1; comm -12 a c | wc -l
tac a | head -n 2; nl a | tail -n 1; cut -c2 a | sort -u | tr -d '\n'; echo; fold -w 3 a | wc -l; expr 6 \* 7; factor 360360
head -c 10 /dev/zero | base64; echo test | sha256sum; uniq -c <<< "$(printf 'a\na\nb\n')"; shuf -i 1-5 | sort | tr '\n' ' '; echo
env -i A=b env; nice -n 5 nice; timeout 0.2 sleep 5; echo "status $?"; tee t1 t2 < a | tail -n 1; cmp t1 t2 && echo same
test -x /bin/ls && echo executable; id -u; uname -s; date -u -d @86400 +%F; cd /; rm -rf $d
"#;

fn run_text_tools(platform: &Platform) {
    let mb = size_mb();
    let text = format!(
        r#"set -e; d=$(mktemp -d); cd $d
awk 'BEGIN {{ srand(7); for (i = 0; i < {mb} * 16384; i++) printf "%09d line %d of words alpha beta gamma %d delta\n", (i * 7919) % 1000003, i, i % 977 }}' > text
wc text; grep -c 'gamma 9.. ' text; sed -n 's/alpha \(beta\) gamma/\1/p' text | md5sum
awk '{{ s += $1; n[$8 % 10]++ }} END {{ printf "%.0f\n", s; for (k = 0; k < 10; k++) print k, n[k] }}' text
sort text | sha256sum; sort -k8n -k1r text | tail -n 3; cut -d' ' -f8 text | sort -n | uniq -c | sort -rn | head -n 5
mkdir t; split -l 100000 text t/part; tar cf - --sort=name --mtime=@0 --owner=0 --group=0 t | gzip -n > t.gz; gzip -dc t.gz | sha256sum
mkdir u; tar xzf t.gz -C u; diff -r t u/t && echo identical; cat u/t/* | cmp - text && echo whole
cd /; rm -rf $d"#
    );
    platform.same_as_host(&Program::shell("bash", &text).env("LC_ALL", "C").limit(400));
}

fn run_find_usr_share(platform: &Platform) {
    let dir = if host::time_scale() > 1 { "/usr/share/perl" } else { "/usr/share" };
    platform
        .same_as_host(&Program::shell("sh", &format!("find {dir} | sort | sha256sum")).env("LC_ALL", "C").limit(300));
}

fn run_read_many_files(platform: &Platform) {
    let dir = if host::time_scale() > 1 { "/usr/share/perl/*/unicore/lib/Age" } else { "/usr/share/perl" };
    let text = format!(
        "find {dir} -type f | sort | xargs cat | sha256sum; du -s --apparent-size -k {dir}; ls -lR {dir} | md5sum"
    );
    platform.same_as_host(&Program::shell("sh", &text).env("LC_ALL", "C").limit(300));
}

fn run_perl(platform: &Platform) {
    let text = r#"
use strict; use warnings; use POSIX; use File::Temp qw(tempdir); use List::Util qw(sum shuffle); use Data::Dumper;
my %h = map { $_ => $_ ** 2 } 1 .. 1000; print sum(values %h), "\n";
my $d = tempdir(CLEANUP => 1); open(my $f, '>', "$d/f") or die; print $f "line $_\n" for 1 .. 10000; close $f;
open($f, '<', "$d/f") or die; my $n = grep { /7$/ } <$f>; print "$n\n";
my $pid = open(my $p, '-|', 'echo from a child; exit 3') or die; print <$p>; close $p; print $? >> 8, "\n";
$SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; select(undef, undef, undef, 10) }; print $@;
my $kid = fork; if (!$kid) { exit 5 } waitpid $kid, 0; print $? >> 8, "\n";
local $Data::Dumper::Sortkeys = 1; local $Data::Dumper::Indent = 1; print Dumper({ a => [1, 2], b => { c => undef } });
my $s = join '', map { chr(97 + $_ % 26) } 1 .. 100000; my $count = () = $s =~ /xyz/g; print "$count\n";
print strftime('%Y-%m-%d', gmtime(86400 * 365)), "\n";
"#;
    platform.same_as_host(&Program::new(&["perl", "-e", text]).limit(120));
}

fn run_python(platform: &Platform) {
    let text = r#"
import collections, concurrent.futures, csv, ctypes, decimal, hashlib, io, json, os, queue, random, re, select, shutil, signal, socket, sqlite3, struct, subprocess, sys, tempfile, threading, time, zlib
total = 0; lock = threading.Lock()
def work(n):
    global total
    for i in range(2000):
        with lock: total += i * n
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(total)
q = queue.Queue(5)
def produce():
    for i in range(200): q.put(i)
    q.put(None)
threading.Thread(target=produce).start()
print(sum(iter(q.get, None)))
with concurrent.futures.ThreadPoolExecutor(6) as pool: print(list(pool.map(lambda n: hashlib.sha256(bytes(n)).hexdigest()[:8], range(0, 1000, 250))))
print(subprocess.run(['sh', '-c', 'cat; echo err >&2; exit 4'], input=b'to the child', capture_output=True))
print(subprocess.check_output('seq 1 10 | tac | head -n 2', shell=True, text=True))
p = subprocess.Popen(['sleep', '60']); p.terminate(); print(p.wait())
try: subprocess.run(['/nonexistent/program'])
except FileNotFoundError as e: print(e.errno)
d = tempfile.mkdtemp(); path = os.path.join(d, 'f'); open(path, 'w').write('x' * 100000); print(os.stat(path).st_size, sorted(os.listdir(d))); shutil.rmtree(d)
r, w = os.pipe(); pid = os.fork()
if pid == 0: os.write(w, b'child'); os._exit(6)
print(os.read(r, 10), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.signal(signal.SIGUSR1, lambda s, f: print('signal', s)); os.kill(os.getpid(), signal.SIGUSR1)
db = sqlite3.connect(':memory:'); db.execute('create table t (a, b)'); db.executemany('insert into t values (?, ?)', [(i, i * i) for i in range(1000)]); print(db.execute('select sum(b) from t where a % 7 = 3').fetchone())
print(zlib.crc32(zlib.compress(b'data' * 10000)), decimal.Decimal(2).sqrt(), json.dumps({'k': [1, None, True]}), re.sub(r'(\d+)', lambda m: str(int(m[1]) * 2), 'a1b22'))
random.seed(5); print(random.random(), struct.pack('<IH', 1, 2)); time.sleep(0.05); print(time.monotonic() > 0, os.cpu_count() > 0)
"#;
    platform.same_as_host(&Program::new(&["python3", "-c", text]).limit(180));
}

/// Eight threads compute; beside them a shell in the same sandbox goes on running commands.
fn run_responsive_beside_computation(platform: &Platform) {
    let compute = programs::program("compute");
    let compute = compute.display();
    platform.same_as_host(&Program::new(&[compute.to_string()]).limit(120));
    // The computation would go on for long after the time limit; the shell ends it when it is done.
    let text = format!(
        "{compute} 1000 & sleep 1; for i in 1 2 3 4 5 6 7 8; do echo $i | sed 's/$/!/'; done; kill $!; wait; echo end"
    );
    let ended = platform.run(&Program::shell("bash", &text).limit(60));
    assert_eq!(ended.stdout(), "1!\n2!\n3!\n4!\n5!\n6!\n7!\n8!\nend\n", "{}", ended.describe());
}

/// Data goes through standard input and output unchanged.
fn run_standard_streams(platform: &Platform) {
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ended = platform.run(&Program::new(&["cat"]).input(input.clone()).limit(120));
    assert!(ended.code() == 0 && ended.stdout == input, "{} bytes of {}", ended.stdout.len(), input.len());
    platform.same_as_host(&Program::shell("sh", "echo out; echo err >&2; exit 42"));
    let ended = platform.run(&Program::shell("sh", "echo out; echo err >&2"));
    assert_eq!((ended.stdout(), ended.stderr()), ("out\n".into(), "err\n".into()));
    // Whoever reads stops reading: the writer gets SIGPIPE.
    platform.same_as_host(&Program::shell("bash", "yes | head -n 1; echo ${PIPESTATUS[0]}"));
}

fn run_exit_status(platform: &Platform) {
    for (text, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
    ] {
        let ended = platform.run(&Program::shell("sh", text));
        // The first process of a pid namespace is safe from its own signals; a child's fate is seen through its parent.
        let through = platform.run(&Program::shell("sh", &format!("sh -c '{text}'; exit $?")));
        assert_eq!(through.code(), code, "{text}: {}", through.describe());
        if !text.starts_with("kill") {
            assert_eq!(ended.code(), code, "{text}: {}", ended.describe());
        }
    }
}

/// What a sandbox writes stays in its overlay.
fn run_host_root_is_untouched(platform: &Platform) {
    let mark = format!("/usr/runsc-test-{}", std::process::id());
    let text = format!(
        "echo x > {mark} && cat {mark} && rm /etc/hostname; ls /etc/hostname 2>/dev/null; mkdir /new && ls -d /new && mv /etc/passwd /etc/p2 && ls /etc/p2"
    );
    let before = std::fs::read("/etc/passwd").expect("/etc/passwd");
    let ended = platform.run(&Program::shell("sh", &text));
    assert_eq!(ended.stdout(), "x\n/new\n/etc/p2\n", "{}", ended.describe());
    assert!(!std::path::Path::new(&mark).exists() && !std::path::Path::new("/new").exists());
    assert_eq!(std::fs::read("/etc/passwd").expect("/etc/passwd"), before);
}

fn run_is_a_kernel_of_its_own(platform: &Platform) {
    let ended = platform.run(&Program::shell("sh", "uname -sr; echo $$; cat /proc/1/comm; ps -e 2>/dev/null | wc -l"));
    let text = ended.stdout();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("Linux 6.1.0"), "{}", ended.describe());
    assert_eq!(lines.next(), Some("1"), "{}", ended.describe());
}

on_sandboxes! {
    kvm ignored: "minutes in the emulated machine, which seldom lives as long";
    pipelines = |platform: &Platform| script(platform, SHELLS, PIPELINES);
    subshells = |platform: &Platform| script(platform, SHELLS, SUBSHELLS);
    here_documents = |platform: &Platform| script(platform, SHELLS, HERE_DOCUMENTS);
    jobs = |platform: &Platform| script(platform, SHELLS, JOBS);
    job_control = |platform: &Platform| script(platform, &["bash"], JOB_CONTROL);
    bash_features = |platform: &Platform| script(platform, &["bash"], BASH);
    coreutils = |platform: &Platform| script(platform, &["bash"], COREUTILS);
    text_tools = run_text_tools;
    find_usr_share = run_find_usr_share;
    read_many_files = run_read_many_files;
    perl = run_perl;
    python = run_python;
    responsive_beside_computation = run_responsive_beside_computation;
    standard_streams = run_standard_streams;
    exit_status = run_exit_status;
    host_root_is_untouched = run_host_root_is_untouched;
    is_a_kernel_of_its_own = run_is_a_kernel_of_its_own;
}

/// The scripts are right on the host: they end well and say something.
#[test]
fn scripts_hold_on_the_host() {
    let host = Platform { kind: runsc_tests::platform::Kind::Native };
    for (shell, text) in [
        ("sh", PIPELINES),
        ("sh", SUBSHELLS),
        ("sh", HERE_DOCUMENTS),
        ("sh", JOBS),
        ("bash", JOB_CONTROL),
        ("bash", BASH),
        ("bash", COREUTILS),
    ] {
        let ended = host.run(&Program::shell(shell, text).env("LC_ALL", "C"));
        assert!(
            ended.code() == 0 && ended.stdout().lines().count() > 2 && !ended.timed_out,
            "{text}: {}",
            ended.describe()
        );
        host.same_as_host(&Program::shell(shell, text).env("LC_ALL", "C"));
    }
    // What is compared below says the same twice.
    run_perl(&host);
    run_python(&host);
    run_responsive_beside_computation(&host);
    run_standard_streams(&host);
}
