#!/bin/sh
# Check a deployment from any machine with curl: models, chat, and the weather tool over both APIs.
#
#   ANTHROPIC_BASE_URL=http://gateway:4000 ANTHROPIC_AUTH_TOKEN=sk-... sh test-api.sh [MODEL]
#   sh test-api.sh -u http://gateway:4000 -k FILE_WITH_THE_KEY [MODEL]
#
# ANTHROPIC_API_KEY will do as well. Without MODEL it asks ANTHROPIC_MODEL, or the first local-claude-* that is listed.
# Exit status: 0 all OK, 1 something FAILED, 2 wrong use.
set -u

url=${ANTHROPIC_BASE_URL:-}
key=${ANTHROPIC_AUTH_TOKEN:-${ANTHROPIC_API_KEY:-}}
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while getopts u:k:h option; do
  case $option in
    u) url=$OPTARG ;;
    k) key=$(cat "$OPTARG") || exit 2 ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ -n "$url" ] && [ -n "$key" ] || usage
url=${url%/}
failed=0
timeout=${TEST_API_TIMEOUT:-300}

answer=$(mktemp) && headers=$(mktemp) || exit 2
trap 'rm -f "$answer" "$headers"' EXIT
# A file, because arguments of a command are seen by every user of a machine.
chmod 600 "$headers"
printf 'Authorization: Bearer %s\n' "$key" > "$headers"

# ask PATH [BODY]: the status goes to $status, the body to $answer.
ask() {
  if [ $# -gt 1 ]; then
    status=$(printf %s "$2" | curl -sS -m "$timeout" -o "$answer" -w '%{http_code}' -H "@$headers" \
      -H 'Content-Type: application/json' -H 'anthropic-version: 2023-06-01' --data-binary @- "$url$1")
  else
    status=$(curl -sS -m "$timeout" -o "$answer" -w '%{http_code}' -H "@$headers" "$url$1")
  fi
}
# check NAME STATUS PATTERN...: each pattern must stand in the answer.
check() {
  name=$1 wanted=$2 why=''
  shift 2
  [ "$status" = "$wanted" ] || why="HTTP $status instead of $wanted"
  for pattern in "$@"; do
    [ -n "$why" ] || tr -d '\n' < "$answer" | grep -Eq -- "$pattern" || why="no /$pattern/ in the answer"
  done
  if [ -z "$why" ]; then
    printf 'OK      %s\n' "$name"
  else
    failed=1
    printf 'FAILED  %s: %s\n' "$name" "$why"
    head -c 1000 "$answer" | sed 's/^/        /'
    echo
  fi
}

ask /v1/models
check 'list of models' 200 '"id": *"'
names=$(grep -Eo '"id": *"[^"]*"' "$answer" | sed 's/.*"\([^"]*\)"$/\1/')
model=${1:-${ANTHROPIC_MODEL:-$(printf '%s\n' "$names" | grep -m1 '^local-claude-' || printf '%s\n' "$names" | head -n 1)}}
[ -n "$model" ] || { echo 'FAILED  no model to ask'; exit 1; }
echo "        asking $model"

question='北京今天天气怎么样？请调用 get_weather 工具。'
schema='{"type": "object", "properties": {"city": {"type": "string", "description": "城市名"}}, "required": ["city"]}'
hello='[{"role": "user", "content": "用一句话介绍你自己。"}]'
weather="[{\"role\": \"user\", \"content\": \"$question\"}]"
openai="\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"description\": \"查询城市的天气\", \"parameters\": $schema}}]"
anthropic="\"tools\": [{\"name\": \"get_weather\", \"description\": \"查询城市的天气\", \"input_schema\": $schema}]"
head="\"model\": \"$model\", \"max_tokens\": 1024"

ask /v1/chat/completions "{$head, \"messages\": $hello}"
check 'chat completions' 200 '"content": *"[^"]'
ask /v1/messages "{$head, \"messages\": $hello}"
check 'messages' 200 '"type": *"text"' '"text": *"[^"]'
ask /v1/chat/completions "{$head, \"messages\": $hello, \"stream\": true}"
check 'chat completions, streamed' 200 'data: *\[DONE\]'
ask /v1/messages "{$head, \"messages\": $hello, \"stream\": true}"
check 'messages, streamed' 200 'message_stop'
ask /v1/chat/completions "{$head, \"messages\": $weather, $openai}"
check 'weather tool, chat completions' 200 '"tool_calls": *\[ *\{' '"name": *"get_weather"' '\\"city\\"'
ask /v1/messages "{$head, \"messages\": $weather, $anthropic}"
check 'weather tool, messages' 200 '"tool_use"' '"name": *"get_weather"' '"city": *"'
ask /v1/messages/count_tokens "{\"model\": \"$model\", \"messages\": $hello}"
check 'count_tokens' 200 '"input_tokens": *[1-9]'
printf 'Authorization: Bearer sk-wrong\n' > "$headers"
ask /v1/messages "{$head, \"messages\": $hello}"
check 'wrong key is refused' 401

[ "$failed" = 0 ] && echo 'All OK.' || echo 'Something FAILED.'
exit "$failed"
