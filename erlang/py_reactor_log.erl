%%% Python's log lines, handed to OTP's logger.
%%%
%%% The native side sends {py_log, Level, Text, Metadata} and counts the lines in flight; each one is
%%% acknowledged here once it is with the logger. What was dropped meanwhile is reported as one line.
-module(py_reactor_log).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/0]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Report callback
-export([format/1]).

-type level() :: debug | info | warning | error | critical.
-type metadata() :: #{logger | file | line | traceback | atom() => binary()}.

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @private
-spec init([]) -> {ok, no_state}.
init([]) ->
    ok = py_nif:log_register(),
    {ok, no_state}.

%% @private
-spec handle_call(term(), gen_server:from(), no_state) -> {reply, {error, unknown_call}, no_state}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), no_state) -> {noreply, no_state}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), no_state) -> {noreply, no_state}.
handle_info({py_log, Level, Text, Metadata}, State) ->
    log(Level, Text, Metadata),
    tell(Text, Metadata),
    report_dropped(py_nif:log_taken(1)),
    {noreply, State};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%% @doc How a line is printed: the text, and the traceback below it.
-spec format(logger:report()) -> {io:format(), [term()]}.
format(#{python := Text, traceback := Traceback}) ->
    {"~ts~n~ts", [Text, Traceback]};
format(#{python := Text}) ->
    {"~ts", [Text]}.

%%--------------------------------------------------------------------------------------------------

-spec log(level(), binary(), metadata()) -> ok.
log(Level, Text, Native) ->
    Metadata = maps:map(fun metadata/2, Native),
    %% In the metadata too, for filters and templates, but for the traceback, which is text. No domain
    %% of our own: the default handler would filter it out.
    logger:log(
        Level,
        Metadata#{python => Text},
        (maps:remove(traceback, Metadata))#{report_cb => fun ?MODULE:format/1}
    ).

%% Only what a worker says of a callback that failed has the callback's name.
tell(Text, #{callback := _} = Native) ->
    Metadata = maps:map(fun metadata/2, Native),
    py_reactor_events:execute(
        [py_reactor, callback, exception], #{count => 1}, Metadata#{text => Text}
    );
tell(_Text, _Native) ->
    ok.

%% The types that OTP's own metadata has for these keys.
metadata(file, File) -> unicode:characters_to_list(File);
metadata(Key, Number) when Key =:= line; Key =:= fd -> binary_to_integer(Number);
metadata(_Key, Value) -> Value.

report_dropped(0) ->
    ok;
report_dropped(Lines) ->
    ?LOG_WARNING(#{what => python_log_lines_dropped, lines => Lines}).
