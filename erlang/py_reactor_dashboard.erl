%%% The dashboard: a page with live figures and plots, and the metrics, over HTTP.
%%%
%%% It is a listener like any other, whose protocol is `erlang._dashboard.Dashboard', on a context of
%%% its own: a callback that holds up another context does not hold up the page, unless it holds the
%%% GIL. This process takes the figures every second and keeps those of the last minutes, so that the
%%% page has something to plot at once, and renders what the protocol asks for: no figure costs the
%%% GIL more than the copy of the answer.
%%%
%%% Messages: `sample', its own reminder; `{Wanted, Number, Connection}' from the protocol, answered
%%% with `{Number, {bytes, Body}}', where Wanted is `<<"metrics">>' or `{<<"data">>, Run, Since}'.
-module(py_reactor_dashboard).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start/1, stop/0, start_link/0]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([options/0, reason/0]).

-type options() :: #{
    port => inet:port_number(),
    ip => inet:ip_address() | loopback | any,
    hosts => [unicode:chardata()]
}.
%% `port': 0, the default, for one that the kernel chooses; `py_reactor:get_port(py_reactor_dashboard)'
%% tells which. `ip': the loopback address unless something else is said; anybody who reaches it can
%% read everything there. `hosts': more names by which browsers may ask for it, besides the loopback
%% names and the address; a proxy in front needs that.

-type reason() :: {bad_option, Key :: term()} | {already_started, pid()} | not_running | term().

-record(state, {
    %% Tells the samples of this process from those of one before it.
    run :: pos_integer(),
    sequence = 0 :: non_neg_integer(),
    %% The latest ?SAMPLES, as JSON, oldest first.
    samples = queue:new() :: queue:queue({Sequence :: pos_integer(), iodata()})
}).

-define(INTERVAL_MS, 1000).

%% Five minutes, and the one before, from which the first rate is counted.
-define(SAMPLES, 301).

%% The page asks once a second; a scraper every few. The rest is for neither.
-define(MAX_CONNECTIONS, 100).

%% What of each context and listener is plotted, in the order in which the page expects it.
-define(PLOTTED, [active, reads, callbacks, callback_us, bytes_in, bytes_out, exceptions]).

%% @doc Starts the dashboard.
-spec start(options()) -> {ok, pid()} | {error, reason()}.
start(Options) when is_map(Options) ->
    case bad_options(Options) of
        [] -> started(py_reactor_dashboard_sup:start(listener(Options)));
        [Key | _] -> {error, {bad_option, Key}}
    end;
start(_) ->
    error(badarg).

%% @doc Stops it.
-spec stop() -> ok | {error, not_found}.
stop() ->
    py_reactor_dashboard_sup:stop().

%% @private
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%%--------------------------------------------------------------------------------------------------
%% Options

bad_options(Options) ->
    Checks = #{port => fun is_port_number/1, ip => fun is_ip/1, hosts => fun is_hosts/1},
    [
        Key
     || {Key, Value} <- lists:sort(maps:to_list(Options)),
        not (is_map_key(Key, Checks) andalso (map_get(Key, Checks))(Value))
    ].

is_port_number(Port) -> is_integer(Port) andalso Port >= 0 andalso Port =< 65535.

is_ip(loopback) -> true;
is_ip(any) -> true;
is_ip(Ip) -> inet:is_ip_address(Ip).

is_hosts(Hosts) -> is_list(Hosts) andalso lists:all(fun is_host/1, Hosts).

%% As a browser writes it in the field Host, without the port.
is_host(Host) when is_binary(Host); is_list(Host) ->
    Pattern = "^([0-9a-z._-]+|\\[[0-9a-f:.]+\\])$",
    try
        re:run(unicode:characters_to_binary(Host), Pattern, [caseless, dollar_endonly]) =/= nomatch
    catch
        error:badarg -> false
    end;
is_host(_) ->
    false.

listener(Options) ->
    Ip = address(maps:get(ip, Options, loopback)),
    Hosts = [string:lowercase(unicode:characters_to_binary(H)) || H <- maps:get(hosts, Options, [])],
    Any = lists:member(Ip, [{0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}]),
    Kwargs = #{hosts => [host(Ip) | Hosts], any_address => Any},
    #{
        ip => Ip,
        port => maps:get(port, Options, 0),
        protocol => {'erlang._dashboard', 'Dashboard', Kwargs},
        contexts => [py_reactor_dashboard_sup:context()],
        nodelay => true,
        max_connections => ?MAX_CONNECTIONS,
        num_acceptors => 1,
        shutdown => 0
    }.

address(loopback) -> {127, 0, 0, 1};
address(any) -> {0, 0, 0, 0};
address(Ip) -> Ip.

host(Ip) when tuple_size(Ip) =:= 4 -> list_to_binary(inet:ntoa(Ip));
host(Ip) -> list_to_binary(["[", inet:ntoa(Ip), "]"]).

started({ok, _} = Ok) -> Ok;
started({error, {shutdown, {failed_to_start_child, _, Reason}}}) -> started({error, Reason});
started({error, {Reason, Child}}) when element(1, Child) =:= child -> started({error, Reason});
started({error, Reason}) -> {error, Reason}.

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init([]) -> {ok, #state{}}.
init([]) ->
    _ = erlang:send_after(?INTERVAL_MS, self(), sample),
    {ok, sample(#state{run = erlang:system_time(microsecond)})}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(sample, State) ->
    _ = erlang:send_after(?INTERVAL_MS, self(), sample),
    {noreply, sample(State)};
handle_info({<<"metrics">>, Number, Connection}, State) ->
    answer(Connection, Number, py_reactor_metrics:metrics()),
    {noreply, State};
handle_info({{<<"data">>, Run, Since}, Number, Connection}, State) ->
    answer(Connection, Number, data(Run, Since, State)),
    {noreply, State};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%% Whoever asked may be gone.
answer(Connection, Number, Body) ->
    _ = py_reactor:send(Connection, {Number, {bytes, iolist_to_binary(Body)}}),
    ok.

%%--------------------------------------------------------------------------------------------------
%% Figures

sample(#state{sequence = Last, samples = Samples} = State) ->
    #{contexts := Contexts, listeners := Listeners} = py_reactor_metrics:figures(),
    Sequence = Last + 1,
    Sample = json([
        Sequence,
        erlang:system_time(millisecond),
        maps:from_list([{text(C), plotted(Stats)} || {#{context := C}, Stats} <- Contexts]),
        maps:from_list([{text(L), plotted(Stats)} || {#{name := L}, Stats} <- Listeners])
    ]),
    State#state{sequence = Sequence, samples = bounded(queue:in({Sequence, Sample}, Samples))}.

plotted(Stats) ->
    [maps:get(Key, Stats, 0) || Key <- ?PLOTTED].

bounded(Samples) ->
    case queue:len(Samples) > ?SAMPLES of
        true -> queue:drop(Samples);
        false -> Samples
    end.

%% All samples, unless the page has some of them already.
data(Run, Since, #state{run = Run, samples = Samples}) ->
    data(Run, [Sample || {Sequence, Sample} <- queue:to_list(Samples), Sequence > Since]);
data(_OtherRun, _Since, #state{run = Run, samples = Samples}) ->
    data(Run, [Sample || {_, Sample} <- queue:to_list(Samples)]).

data(Run, Samples) ->
    #{contexts := Contexts, listeners := Listeners} = py_reactor_metrics:figures(),
    {UptimeMs, _} = erlang:statistics(wall_clock),
    Now = #{
        run => integer_to_binary(Run),
        node => atom_to_binary(node()),
        version => py_reactor_metrics:version(),
        otp => list_to_binary(erlang:system_info(otp_release)),
        uptime_ms => UptimeMs,
        interval_ms => ?INTERVAL_MS,
        contexts => [described(C) || C <- Contexts],
        listeners => [described(L) || L <- Listeners]
    },
    ["{\"now\":", json(Now), ",\"samples\":[", lists:join($,, Samples), "]}"].

described({#{context := Label} = Metadata, Stats}) ->
    described(Label, Metadata, Stats);
described({#{name := Name} = Metadata, Stats}) ->
    described(Name, Metadata, Stats).

described(Name, #{pid := Pid} = Metadata, Stats) ->
    Shown = maps:with([status, address, protocol], Metadata),
    maps:merge(Stats, Shown#{name => text(Name), pid => text(Pid)}).

text(Name) ->
    unicode:characters_to_binary(py_reactor_metrics:text(Name)).

%%--------------------------------------------------------------------------------------------------
%% JSON: OTP has a module for it from 27 on

json(Number) when is_integer(Number) -> integer_to_list(Number);
json(infinity) -> "null";
json(Atom) when is_atom(Atom) -> json(atom_to_binary(Atom));
json(Text) when is_binary(Text) -> [$", [escaped(C) || <<C/utf8>> <= Text], $"];
json(List) when is_list(List) -> [$[, lists:join($,, [json(Item) || Item <- List]), $]];
json(Map) when is_map(Map) ->
    [${, lists:join($,, [[json(Key), $:, json(Value)] || {Key, Value} <- maps:to_list(Map)]), $}].

escaped($") -> "\\\"";
escaped($\\) -> "\\\\";
escaped(C) when C < 16#20 -> io_lib:format("\\u~4.16.0b", [C]);
escaped(C) when C < 16#80 -> C;
escaped(C) -> <<C/utf8>>.
