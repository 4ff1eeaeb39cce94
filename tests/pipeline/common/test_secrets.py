"""Secrets that somebody wrote into what is rendered and recorded."""

import pytest

from jobs.snapshot import refuse_secrets
from jobs.spec import Cluster, Job, SubmitError, check
from pipeline import doctor
from pipeline.common.errors import ConfigError
from pipeline.common.secrets import redact, refuse_secret
from pipeline.config.compose import compose
from pipeline.config.schema import DoctorConfig
from pipeline.tracking.delivery import flatten

# Published examples (AWS's documentation) and made-up values of the publishers' shapes.
SECRETS = [
    "cluster.setup=['export HF_TOKEN=abc']",
    "cluster.setup=['MLFLOW_TRACKING_PASSWORD=hunter2 source x.sh']",
    "cluster.setup=['tool --api-key=\"abc\" login']",
    "cluster.setup=['docker login --password hunter2 --username me']",
    "cluster.setup=['curl -H \"Authorization: Bearer abcdefghijklmnop\" https://h']",
    "cluster.setup=['login AKIAIOSFODNN7EXAMPLE']",
    "cluster.setup=['huggingface-cli login hf_abcdefghijklmnopqrstuvwx']",
    "cluster.sbatch={comment: 'WANDB_API_KEY=abc'}",
    "cluster.env={OPTIONS: '--secret=abc'}",
    "cluster.env={X: ghp_abcdefghijklmnopqrstuvwxyz0123456789}",
    "cluster.patch={spec: {containers: [{name: main, env: [{name: A_TOKEN, value: abc}]}]}}",
    "cluster.patch={metadata: {annotations: {note: 'AWS_SECRET_ACCESS_KEY=abc'}}}",
]
REFERENCES = [
    "cluster.setup=['export HF_TOKEN=$MY_TOKEN', 'export A_TOKEN=\"$B_TOKEN\"']",
    "cluster.setup=['export A_TOKEN=$(cat ~/.token)', 'A_SECRET=`pass x` tool', 'unset A_TOKEN']",
    "cluster.setup=['export AWS_WEB_IDENTITY_TOKEN_FILE=/run/token', 'read A_TOKEN < /run/token']",
    "cluster.setup=['export TOKENIZERS_PARALLELISM=false', '[ \"$A_TOKEN\" = x ] && echo yes']",
    "cluster.setup=['docker login --password-stdin < /run/p', 'x --use-token && y --token $T']",
    "cluster.setup=['conda activate sk-learn-environment-2024']",
    "cluster.sbatch={comment: 'tokens of the month'}",
    "cluster.env={TOKENIZERS_PARALLELISM: 'false', HF_TOKEN_PATH: /run/token}",
    "cluster.patch={spec: {automountServiceAccountToken: true, containers: [{name: main, env: "
    "[{name: A_TOKEN, valueFrom: {secretKeyRef: {name: s, key: k}}},"
    "{name: B_TOKEN, value: '$(A_TOKEN)'}]}]}}",
    "cluster.patch={spec: {volumes: [{name: v, secret: {secretName: my-secret}}]}}",
]


# Names of environment variables and keys, and whether their values are secret.
NAMES = {
    "HF_TOKEN": True,
    "DB_CREDENTIAL": True,
    "SITE_CREDENTIALS": True,
    "WANDB_API_KEY": True,
    "AWS_SECRET_ACCESS_KEY": True,
    "SSH_PRIVATE_KEY": True,
    "MLFLOW_TRACKING_PASSWORD": True,
    "TOKENIZER_HUB_TOKEN": True,
    "HF_TOKENIZER_DIR": False,
    "TOKENIZERS_PARALLELISM": False,
    "SSH_PRIVATE_KEY_PATH": False,
    "HF_TOKEN_PATH": False,
    "AWS_SHARED_CREDENTIALS_FILE": False,
    "GOOGLE_APPLICATION_CREDENTIALS": False,
    "SECRETS_DIR": False,
    "XDG_CACHE_HOME": False,
}


def refused(function, *arguments):
    try:
        function(*arguments)
    except (ConfigError, SubmitError):
        return True
    return False


@pytest.mark.parametrize(("name", "secret"), NAMES.items())
def test_one_rule_decides_everywhere_which_names_are_secret(monkeypatch, name, secret):
    value = "/data/places"
    job = Job(id="x", verb="train", arguments=(), run="runs/x", folder="runs/x")
    cluster = Cluster(scheduler="slurm", env={name: value})
    assert refused(check, job, cluster) is secret, "the environment of a job"
    assert refused(refuse_secret, "cluster.setup", f"export {name}=abc") is secret, "a command"
    assert flatten({name.lower(): value}) == {name.lower(): "***" if secret else value}
    assert flatten({name: {"a": {"b": value}}}) == (
        {name: "***"} if secret else {f"{name}.a.b": value}
    )
    for text in (f"{name}={value}", f'"{name.lower()}": "{value}"', f"--{name.lower()}={value}"):
        assert (value not in redact(text)) is secret, text

    monkeypatch.setenv(name, value)
    assert redact(f"data.url={value}/train") == f"data.url={'***' if secret else value}/train"
    assert refused(refuse_secret, "data.url", f"{value}/train") is secret, "a value of the config"
    assert refused(refuse_secrets, f"+url = {value}") is secret, "uncommitted changes"


def test_of_two_secrets_that_begin_alike_nothing_is_left(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "correct-horse")
    monkeypatch.setenv("B_TOKEN", "correct-horse-battery")
    assert redact("x correct-horse-battery y") == "x *** y"


def test_doctor_shows_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:pass/word@host")
    monkeypatch.setenv("DB_CREDENTIAL", "correct-horse")
    monkeypatch.setenv("HF_TOKENIZER_DIR", "/dev/null")
    for name in ("python", "torch_build", "devices", "precision", "packages", "weights"):
        monkeypatch.setattr(doctor, name, lambda: doctor.Check("x", "ok", "y"))
    with pytest.raises(SystemExit):
        doctor.main(DoctorConfig(url="/dev/null/correct-horse"))
    shown = capsys.readouterr().err
    assert "MLFLOW_TRACKING_URI=*** cannot be used" in shown and "/dev/null/***" in shown
    assert not any(word in shown for word in ("bob", "pass/", "word@", "correct-horse"))


def scheduler(word):
    return "cluster=kubernetes" if word.startswith("cluster.patch") else "cluster=slurm"


@pytest.mark.parametrize("word", SECRETS)
def test_a_secret_as_plain_text_is_refused_in_one_line_that_does_not_repeat_it(word):
    with pytest.raises(ConfigError, match="holds a secret as plain text") as refused:
        compose("submit", [scheduler(word), word])
    message = str(refused.value)
    assert message.startswith(word.partition("=")[0]) and "cluster.secrets" in message
    assert "\n" not in message and len(message) < 250
    for value in ("abc", "hunter2", "AKIA", "ghp_"):
        assert value not in message


@pytest.mark.parametrize("word", REFERENCES)
def test_a_reference_to_a_secret_is_accepted(word):
    assert compose("submit", [scheduler(word), word])


def test_a_file_that_holds_a_token_may_be_named_in_a_job_and_a_token_may_not(monkeypatch):
    from pipeline.submission import submit

    train = ["train", "experiment=quickstart", "data.url=sets/a", "cluster=slurm",
             "cluster.code=image", "cluster.gpus_per_node=0"]  # fmt: skip
    named = "cluster.env={AWS_WEB_IDENTITY_TOKEN_FILE: /run/token}"
    assert "TOKEN_FILE=/run/token" in submit.main([*train, named], dry_run=True)
    with pytest.raises(ValueError, match="looks like a secret"):
        submit.main([*train, "cluster.env={A_TOKEN: x}"], dry_run=True)


def test_a_shell_s_braces_are_answered_with_how_to_write_them():
    with pytest.raises(
        ConfigError, match=r"\$\{NAME\} stands for another key .* is \$NAME"
    ) as caught:
        compose("submit", ["cluster=slurm", "cluster.setup=['cd ${WORK_DIR}']"])
    assert "\n" not in str(caught.value)
